"""Integer codes and bf16 scales of the weights that survive, and bf16 itself; numpy only.

Knows nothing of masks: a pruned weight is a zero, whose code is zero at every scale.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE: Final = {"int8": 127, "int4": 7}
# Where the largest weight of a group may land on the int4 codes, which end at 7. Beyond 7 it is clipped, so that the
# others get a finer grid; below 7 the grid is coarser, which suits groups whose small weights are pruned. 7, 6 and 5
# give back what was unpacked before, exactly. Half-way points (6.5, 7.5) are left out: they lose half a step there.
_INT4_PLACES: Final = (7.0, 5.0, 5.4, 6.0, 6.35, 6.7, 7.35, 7.7, 8.2, 9.0, 10.0)
# What kernels make of a scale in float32 stays normal from here on: they divide it by 16 and multiply other factors in.
SMALLEST_SCALE: Final = 2.0**-100
# A row of int8 has fewer than 2^31 columns, and the product of a weight's code with an activation's (0 to 255 where
# kernels want it unsigned) is below 2^15. Added up they stay within float32, which ends at 2^128: 2^(80 + 15 + 31).
LARGEST_SCALE: Final = 2.0**80


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bf16, ties to even; NaN stays NaN, what is beyond bf16's range becomes infinity."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN's mantissa away.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def quantize(weight: NDArray[np.float32], largest: int, group: int) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Codes in [-largest, largest] and bf16 scales, where weight = scale * code.

    weight: (rows, columns), at most (largest + 1/2) * LARGEST_SCALE. group: columns per scale, 0 for one scale per row;
    the last group may be shorter.
    Returns codes (rows, columns) and bit patterns of the scales (rows, groups); the scale of a group of zeros is 1.
    int8 takes the scale that its largest weight asks for; int4 the best of a few, by the group's squared error.
    """
    rows, columns = weight.shape
    size = group or columns
    groups = -(-columns // size)
    if columns % size:
        weight = np.pad(weight, ((0, 0), (0, groups * size - columns)))
    grouped = weight.reshape(rows, groups, size)
    top = np.maximum(grouped.max(axis=2), -grouped.min(axis=2))
    scales = _scale_at(top, largest) if largest > LARGEST_CODE["int4"] else _best_scale(grouped, top, largest)
    scales[top == 0] = 1
    codes = _codes(grouped / scales[..., None], largest)
    return codes.reshape(rows, -1)[:, :columns].astype(np.int8), to_bf16(scales)


def _scale_at(top: NDArray[np.float32], place: float) -> NDArray[np.float32]:
    """The bf16 scale that puts the group's largest weight at `place`, or the nearest one that is allowed."""
    return from_bf16(to_bf16(np.clip(top / np.float32(place), SMALLEST_SCALE, LARGEST_SCALE)))


def _codes(scaled: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """Nearest codes of weights divided by their scale, in place."""
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -largest, largest, out=scaled)


def _best_scale(grouped: NDArray[np.float32], top: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """Scale of least squared error per group, among `_INT4_PLACES` and the least-squares scale of the winner's codes.

    For fixed codes q the error |w - s q|^2 is least at s = (w . q) / (q . q).
    """
    # Squares of the smallest and largest float32 would leave its range; errors are compared within a group only.
    unit = np.where(top > 0, top, 1).astype(np.float32)
    relative = grouped / unit[..., None]
    best = np.empty_like(top)
    least = np.full(top.shape, np.inf, np.float32)
    work = np.empty_like(grouped)

    def consider(scale: NDArray[np.float32]) -> None:
        step = scale / unit
        codes = _codes(np.divide(relative, step[..., None], out=work), largest)
        codes *= step[..., None]
        codes -= relative
        error = np.einsum("rgc,rgc->rg", codes, codes)
        better = error < least
        best[better] = scale[better]
        least[better] = error[better]

    for place in _INT4_PLACES:
        consider(_scale_at(top, place))
    codes = _codes(np.divide(grouped, best[..., None], out=work), largest)
    across = np.einsum("rgc,rgc->rg", relative, codes)
    along = np.maximum(np.einsum("rgc,rgc->rg", codes, codes), 1)
    # Held at the coarsest place: what was unpacked then finds its own scale again.
    consider(_scale_at(np.minimum(across / along * unit, top / np.float32(min(_INT4_PLACES))), 1))
    return best
