"""A packed weight matrix: what it is made of, what the format allows, and everything that may be wrong with it.

docs/packed-format.md specifies it. The functions called `..._problems` yield what is wrong in words; a later check
relies on the earlier ones: take the first problem and stop. numpy only; knows nothing of files.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError
from .policy import UNSTRUCTURED, Level, kept_per_row
from .quantize import LARGEST_CODE, LARGEST_SCALE, SMALLEST_SCALE, from_bf16

ValueType = Literal["bf16", "fp16", "int8", "int4"]
ALL_KEPT: Final = "dense"
LARGEST_SIZE: Final = 2**31 - 1
LARGEST_BLOCK: Final = 65535
GROUPS: Final[Mapping[str, tuple[int, ...]]] = {"bf16": (0,), "fp16": (0,), "int8": (0, 128), "int4": (128, 32)}
VALUE_DTYPES: Final[Mapping[str, str]] = {"bf16": "uint16", "fp16": "uint16", "int8": "int8", "int4": "uint8"}
# With all these bits set a pattern is infinity or NaN.
_EXPONENT: Final = {"bf16": 0x7F80, "fp16": 0x7C00}
_POPCOUNT: Final = np.array([byte.bit_count() for byte in range(256)], np.uint8)
_WEIGHTS_AT_ONCE: Final = 2**18


@dataclass(frozen=True)
class Encoding:
    """What a weight is stored as. group: columns per scale; 0: one per row (int8), none (bf16, fp16)."""

    values: ValueType
    group: int = 0


ENCODINGS: Final[Mapping[str, Encoding]] = {
    "packed-int4": Encoding("int4", 128),
    "packed-int8": Encoding("int8", 128),
    "packed-bf16": Encoding("bf16"),
}
"""What a setting of `weights`, or a manifest's word for them, stands for."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """One weight matrix, (rows, columns) = (out, in).

    pattern: "unstructured", "N:M" (N kept of every M columns) or "dense" (all kept).
    mask: (rows, 8 * ceil(columns / 64)) bytes, least significant bit first; (rows, 0) where all are kept.
    values: the kept weights, row after row; int4 two to a byte. scales: bf16 bit patterns, (rows, groups).
    """

    rows: int
    columns: int
    encoding: Encoding
    pattern: str
    mask: NDArray[np.uint8]
    values: NDArray[Any]
    scales: NDArray[np.uint16]

    @property
    def kept(self) -> int:
        """Weights stored, whatever their value."""
        return self.rows * self.columns if self.pattern == ALL_KEPT else set_bits(self.mask)

    @property
    def bytes(self) -> int:
        return self.mask.nbytes + self.values.nbytes + self.scales.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per weight of the matrix, the pruned ones counted."""
        return 8 * self.bytes / (self.rows * self.columns)

    def mask_as_bool(self) -> NDArray[np.bool_]:
        """(rows, columns), True where a weight is kept."""
        return self.mask_of(slice(0, self.rows))

    def mask_of(self, rows: slice) -> NDArray[np.bool_]:
        """The same for some rows."""
        if self.pattern == ALL_KEPT:
            return np.ones((rows.stop - rows.start, self.columns), np.bool_)
        return np.unpackbits(self.mask[rows], axis=1, count=self.columns, bitorder="little").view(np.bool_)

    def validate(self, name: str) -> None:
        """Raises ArtifactError that names the tensor when its arrays are not exactly what its description says."""
        if (problem := next(tensor_problems(self), None)) is not None:
            raise ArtifactError(f"packed tensor {short(name)}: {problem}; export the model again")


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that together hold about as many weights as fit a core's cache."""
    step = max(1, _WEIGHTS_AT_ONCE // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def set_bits(mask: NDArray[np.uint8]) -> int:
    return int(_POPCOUNT[mask].sum(dtype=np.int64))


def array_shapes(
    rows: int, columns: int, encoding: Encoding, pattern: str, kept: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of mask, values and scales of a matrix with `kept` weights."""
    size = encoding.group or columns
    integers = encoding.values in LARGEST_CODE
    return {
        "mask": ("uint8", (rows, 0 if pattern == ALL_KEPT else 8 * -(-columns // 64))),
        "values": (VALUE_DTYPES[encoding.values], (-(-kept // 2) if encoding.values == "int4" else kept,)),
        "scales": ("uint16", (rows, -(-columns // size) if integers else 0)),
    }


def dense_bytes(rows: int, columns: int, encoding: Encoding) -> int:
    """Bytes of a matrix that keeps all of its weights and has no mask."""
    return _bytes(array_shapes(rows, columns, encoding, ALL_KEPT, kept=rows * columns))


def smallest_bytes(rows: int, columns: int, encoding: Encoding, pattern: str, kept: int) -> int:
    """Bytes of a matrix with `kept` weights; without a mask where that takes less, zeros and all."""
    masked = _bytes(array_shapes(rows, columns, encoding, pattern, kept))
    return min(masked, dense_bytes(rows, columns, encoding))


def _bytes(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in arrays.values())


def block_counts(pattern: str) -> tuple[int, int] | None:
    """N and M of "N:M"; None for any other pattern."""
    match = re.fullmatch(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", pattern)
    return (int(match[1]), int(match[2])) if match else None


def kept_per_block(columns: int, kept: int, block: int) -> NDArray[np.int64]:
    """Weights kept in each block of a row; the last block may be shorter."""
    counts = np.full(-(-columns // block), kept, np.int64)
    if rest := columns % block:
        counts[-1] = kept_per_row(rest, Level(1 - kept / block, block))
    return counts


def count_kept(mask: NDArray[np.uint8], columns: int, block: int) -> NDArray[np.int64]:
    """Weights that each block of each row keeps, (rows, blocks); no bit beyond `columns` is set."""
    if block % 8 == 0:
        units, size = _POPCOUNT[mask[:, : -(-columns // 8)]], block // 8
    else:
        units, size = np.unpackbits(mask, axis=1, count=columns, bitorder="little"), block
    whole, rest = divmod(units.shape[1], size)
    counts: NDArray[np.int64] = units[:, : whole * size].reshape(len(units), whole, size).sum(axis=2, dtype=np.int64)
    if rest:
        counts = np.column_stack([counts, units[:, whole * size :].sum(axis=1, dtype=np.int64)])
    return counts


def header_problems(rows: object, columns: object, values: object, group: object, pattern: object) -> Iterator[str]:
    """Problems of a description, whatever types a file gave it."""
    for name, size in (("rows", rows), ("columns", columns)):
        if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
            yield f"it has {short(size)} {name}, not a whole number from 1 to {LARGEST_SIZE}"
    if not isinstance(values, str) or values not in GROUPS:
        yield f"its values are {short(values)}, not one of {', '.join(GROUPS)}"
    elif type(group) is not int or group not in GROUPS[values]:
        yield f"{values} values in groups of {short(group)} are not in the format; {GROUPS[values]} are"
    counts = block_counts(pattern) if isinstance(pattern, str) else None
    if pattern not in (UNSTRUCTURED, ALL_KEPT) and not (counts and counts[0] <= counts[1] <= LARGEST_BLOCK):
        yield f"its pattern is {short(pattern)}, not 'unstructured', 'dense' or N:M with N <= M <= {LARGEST_BLOCK}"


def tensor_problems(packed: PackedTensor) -> Iterator[str]:
    """Everything that may be wrong with a packed tensor."""
    encoding, pattern = packed.encoding, packed.pattern
    yield from header_problems(packed.rows, packed.columns, encoding.values, encoding.group, pattern)
    expected = array_shapes(packed.rows, packed.columns, encoding, pattern, kept=0)
    yield from _array_problems("mask", packed.mask, *expected["mask"])
    yield from _array_problems("scales", packed.scales, *expected["scales"])
    if pattern != ALL_KEPT:
        yield from mask_problems(packed.mask, packed.columns, pattern)
    kept = packed.kept
    expected = array_shapes(packed.rows, packed.columns, encoding, pattern, kept)
    yield from _array_problems("values", packed.values, *expected["values"])
    yield from _value_problems(packed.values, encoding.values, kept)
    yield from _scale_problems(packed.scales)


def _array_problems(name: str, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> Iterator[str]:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        yield f"its array '{name}' is {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}"
    if not array.flags.c_contiguous:
        yield f"its array '{name}' does not lie in memory in row-major order"


def mask_problems(mask: NDArray[np.uint8], columns: int, pattern: str) -> Iterator[str]:
    """Bits beyond the last column, and blocks that do not keep what an N:M pattern says."""
    full, rest = divmod(columns, 8)
    if mask[:, full + bool(rest) :].any() or (rest and (mask[:, full] >> rest).any()):
        yield f"its mask keeps weights beyond column {columns - 1}"
    if (counts := block_counts(pattern)) is None:
        return
    kept, block = counts
    expected = kept_per_block(columns, kept, block)
    for part in row_chunks(len(mask), columns):
        found = count_kept(mask[part], columns, block)
        wrong = np.argwhere(found != expected)
        if len(wrong):
            row, place = wrong[0]
            yield (
                f"row {part.start + row} keeps {found[row, place]} weights of block {place}, "
                f"not {expected[place]} as its pattern {pattern} says"
            )


def _value_problems(values: NDArray[Any], kind: ValueType, kept: int) -> Iterator[str]:
    if not values.size:
        return
    match kind:
        case "bf16" | "fp16":
            if ((values & _EXPONENT[kind]) == _EXPONENT[kind]).any():
                yield "a value is infinite or NaN"
        case "int8":
            if values.min() < -LARGEST_CODE["int8"]:
                yield "a value is -128, below the least int8 code, -127"
        case "int4":
            if ((values & 0x0F) == 0x08).any() or ((values & 0xF0) == 0x80).any():
                yield "a value is -8, below the least int4 code, -7"
            if kept % 2 and values[-1] & 0xF0:
                yield "the unused half of its last byte of values is not zero"


def _scale_problems(scales: NDArray[np.uint16]) -> Iterator[str]:
    numbers = from_bf16(scales)
    # Not the other way round: NaN is not larger either.
    wrong = numbers[~((numbers >= SMALLEST_SCALE) & (numbers <= LARGEST_SCALE))]
    if wrong.size:
        yield f"a scale is {wrong[0]:g}, not from {SMALLEST_SCALE:.3g} to {LARGEST_SCALE:.3g}"


def short(value: object) -> str:
    """A value out of a file for a message: escaped, and of bearable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
