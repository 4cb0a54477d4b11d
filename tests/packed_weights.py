"""Random weights in the packed format, its spellings, and a decoder as plain as the specification."""

import numpy as np
from numpy.typing import NDArray

from slimdeploy.packed import Encoding, PackedTensor, pack
from slimdeploy.packed_description import Description
from slimdeploy.policy import Level, kept_per_row

ENCODINGS = (
    Encoding("bf16"),
    Encoding("fp16"),
    Encoding("int8"),
    Encoding("int8", 128),
    Encoding("int4", 128),
    Encoding("int4", 32),
)
PATTERNS = ("unstructured", "32:64", "26:64", "20:64", "2:4", "4:8", "dense")
COLUMNS = (1, 63, 65, 255, 3420, 4100)


def label(encoding: Encoding) -> str:
    return f"{encoding.values}-{encoding.group}"


def random_mask(rng: np.random.Generator, rows: int, columns: int, pattern: str) -> NDArray[np.bool_]:
    """Of the pattern; where it is "unstructured", with a row of none, a row of all and rows of any number."""
    if pattern == "dense":
        return np.ones((rows, columns), np.bool_)
    if pattern == "unstructured":
        mask = rng.random((rows, columns)) < rng.random((rows, 1))
        mask[rng.integers(rows)] = True
        mask[rng.integers(rows)] = False
        return mask
    kept, block = (int(n) for n in pattern.split(":"))
    blocks = -(-columns // block)
    order = rng.random((rows, blocks, block))
    order.reshape(rows, -1)[:, columns:] = 2  # what is beyond the last column comes last
    places = order.argsort(axis=2).argsort(axis=2).reshape(rows, -1)[:, :columns]
    level = Level(1 - kept / block, block)
    counts = [kept_per_row(min(block, columns - start), level) for start in range(0, columns, block)]
    return places < np.repeat(counts, block)[:columns]


def random_weight(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(mask, rng.standard_normal(mask.shape).astype(np.float32) * np.float32(0.02), np.float32(0))


def random_packed(rng: np.random.Generator, encoding: Encoding, pattern: str, rows: int, columns: int) -> PackedTensor:
    mask = random_mask(rng, rows, columns, pattern)
    return pack(random_weight(rng, mask), encoding, pattern, mask)


INT4 = random_packed(np.random.default_rng(1), Encoding("int4", 32), "26:64", rows=3, columns=92)
INT8 = random_packed(np.random.default_rng(1), Encoding("int8"), "unstructured", rows=3, columns=100)
BF16 = random_packed(np.random.default_rng(1), Encoding("bf16"), "2:4", rows=3, columns=100)
FP16 = random_packed(np.random.default_rng(1), Encoding("fp16"), "dense", rows=3, columns=100)
"""One of each type of value, to spoil."""


def assert_same(one: PackedTensor, other: PackedTensor) -> None:
    """Bit for bit."""
    assert Description.of(one) == Description.of(other)
    for part in ("mask", "values", "scales"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part), strict=True)


def decode_plainly(packed: PackedTensor) -> NDArray[np.float64]:
    """The weights, one bit and one value at a time."""
    weight = np.zeros((packed.rows, packed.columns))
    place = 0
    for row in range(packed.rows):
        for column in range(packed.columns):
            if packed.pattern != "dense" and not packed.mask[row, column // 8] >> (column % 8) & 1:
                continue
            weight[row, column] = _value(packed, place) * _scale(packed, row, column)
            place += 1
    return weight


def _value(packed: PackedTensor, place: int) -> float:
    match packed.encoding.values:
        case "bf16":
            return _bf16(int(packed.values[place]))
        case "fp16":
            return float(packed.values[place : place + 1].view(np.float16)[0])
        case "int8":
            return int(packed.values[place])
        case "int4":
            nibble = int(packed.values[place // 2]) >> (4 * (place % 2)) & 0xF
            return nibble - 16 if nibble >= 8 else nibble


def _scale(packed: PackedTensor, row: int, column: int) -> float:
    if packed.encoding.values in ("bf16", "fp16"):
        return 1.0
    return _bf16(int(packed.scales[row, column // (packed.encoding.group or packed.columns)]))


def _bf16(bits: int) -> float:
    return float(np.array([bits << 16], np.uint32).view(np.float32)[0])
