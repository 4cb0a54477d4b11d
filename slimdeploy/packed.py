"""The packed sparse format: dense weights to packed ones and back. Its parts are under this one name.

docs/packed-format.md specifies it. numpy only; `read_packed` and `write_packed` need safetensors as well. Knows
nothing of models, kernels or torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ExportError
from .packed_file import read_packed, write_packed
from .packed_tensor import (
    ALL_KEPT,
    Encoding,
    PackedTensor,
    ValueType,
    array_shapes,
    block_counts,
    count_kept,
    header_problems,
    kept_per_block,
    mask_problems,
    row_chunks,
)
from .quantize import LARGEST_CODE, LARGEST_SCALE, from_bf16, quantize, to_bf16

__all__ = ["Encoding", "PackedTensor", "ValueType", "pack", "read_packed", "unpack", "write_packed"]

# Half a step beyond the largest number of each encoding.
_TOO_LARGE: Final[Mapping[ValueType, float]] = {
    "bf16": 2.0**128 - 2.0**119,
    "fp16": 65520.0,
    "int8": (LARGEST_CODE["int8"] + 0.5) * LARGEST_SCALE,
    "int4": (LARGEST_CODE["int4"] + 0.5) * LARGEST_SCALE,
}


def pack(
    weight: NDArray[np.float32], encoding: Encoding, pattern: str, mask: NDArray[np.bool_] | None = None
) -> PackedTensor:
    """Store `weight`, (rows, columns), as `encoding` says; `mask` (True = kept) defaults to the non-zeros.

    N:M without a mask: a block with more zeros than the pattern removes keeps some of them, the leftmost.
    Raises ExportError where the mask is not of the pattern, or a weight is beyond the encoding's range.
    """
    assert weight.dtype == np.float32, f"weights come as float32, not {weight.dtype}"
    assert mask is None or (mask.dtype == np.bool_ and mask.shape == weight.shape), "a mask is boolean and of W's shape"
    rows, columns = weight.shape
    if (problem := next(header_problems(rows, columns, encoding.values, encoding.group, pattern), None)) is not None:
        raise ExportError(f"a weight matrix cannot be packed: {problem}")
    arrays = {
        part: np.zeros(shape, dtype)
        for part, (dtype, shape) in array_shapes(rows, columns, encoding, pattern, kept=0).items()
    }
    packed = PackedTensor(rows, columns, encoding, pattern, **arrays)
    if pattern != ALL_KEPT:
        for part in row_chunks(rows, columns):
            bits = mask[part] if mask is not None else weight[part] != 0
            packed.mask[part, : -(-columns // 8)] = np.packbits(bits, axis=1, bitorder="little")
            if mask is None and (counts := block_counts(pattern)):
                _top_up(packed.mask[part], columns, *counts)
        if (problem := next(mask_problems(packed.mask, columns, pattern), None)) is not None:
            raise ExportError(f"a weight matrix cannot be packed as '{pattern}': {problem}; use 'unstructured'")
    elif mask is not None and not mask.all():
        raise ExportError("a weight matrix with pruned weights cannot be packed as 'dense'; use 'unstructured'")
    return _with_values(packed, weight)


def _top_up(mask: NDArray[np.uint8], columns: int, kept: int, block: int) -> None:
    """Set the leftmost bits that are missing in blocks that keep less than N of M. mask: some rows, changed."""
    missing = kept_per_block(columns, kept, block) - count_kept(mask, columns, block)
    short_rows = np.flatnonzero((missing > 0).any(axis=1))
    if not len(short_rows):
        return
    bits = np.unpackbits(mask[short_rows], axis=1, count=columns, bitorder="little").view(np.bool_)
    zeros = ~bits
    block_of = np.arange(columns) // block
    # How many zeros of its block a zero has on its left, itself counted.
    place = np.cumsum(zeros, axis=1, dtype=np.int32)
    before = (place - zeros)[:, ::block]
    bits |= zeros & (place - before[:, block_of] <= missing[short_rows][:, block_of])
    mask[short_rows, : -(-columns // 8)] = np.packbits(bits, axis=1, bitorder="little")


def _with_values(packed: PackedTensor, weight: NDArray[np.float32]) -> PackedTensor:
    """`packed`, which has its mask, with the values and scales of `weight`."""
    kind = packed.encoding.values
    values: NDArray[Any] = np.empty(packed.kept, np.int8 if kind in LARGEST_CODE else np.uint16)
    start = 0
    for part in row_chunks(packed.rows, packed.columns):
        bits = packed.mask_of(part)
        stored, packed.scales[part] = _encode(np.where(bits, weight[part], np.float32(0)), packed.encoding)
        survivors = stored[bits]
        values[start : start + len(survivors)] = survivors
        start += len(survivors)
    return replace(packed, values=_join_nibbles(values) if kind == "int4" else values)


def _encode(weight: NDArray[np.float32], encoding: Encoding) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """Stored form of every weight of some rows, and their scales. Raises ExportError for what cannot be stored."""
    kind = encoding.values
    largest = float(np.abs(weight).max())
    # Not the other way round: NaN is not smaller either.
    if not largest < _TOO_LARGE[kind]:
        remedy = "use bf16" if largest < _TOO_LARGE["bf16"] else "the model it comes from is broken"
        raise ExportError(f"a weight matrix that holds {largest:g} cannot be packed as {kind}; {remedy}")
    match kind:
        case "bf16":
            return to_bf16(weight), np.empty((len(weight), 0), np.uint16)
        case "fp16":
            return weight.astype(np.float16).view(np.uint16), np.empty((len(weight), 0), np.uint16)
        case "int8" | "int4":
            return quantize(weight, LARGEST_CODE[kind], encoding.group)


def unpack(packed: PackedTensor) -> NDArray[np.float32]:
    """The weights, (rows, columns), zero where pruned. `packed` is valid."""
    encoding = packed.encoding
    values = _split_nibbles(packed.values, packed.kept) if encoding.values == "int4" else packed.values
    weight = np.zeros((packed.rows, packed.columns), np.float32)
    start = 0
    for part in row_chunks(packed.rows, packed.columns):
        bits, rows = packed.mask_of(part), weight[part]
        end = start + int(np.count_nonzero(bits))
        rows[bits] = _decode(values[start:end], encoding.values)
        if packed.scales.size:
            scales = from_bf16(packed.scales[part])
            rows *= np.repeat(scales, encoding.group or packed.columns, axis=1)[:, : packed.columns]
        start = end
    return weight


def _decode(values: NDArray[Any], kind: ValueType) -> NDArray[np.float32]:
    """Stored values as numbers, not yet scaled."""
    match kind:
        case "bf16":
            return from_bf16(values)
        case "fp16":
            return values.view(np.float16).astype(np.float32)
        case "int8" | "int4":
            return values.astype(np.float32)


def _join_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes to a byte, the first in the low half."""
    nibbles: NDArray[np.uint8] = codes.view(np.uint8) & np.uint8(0x0F)
    joined = nibbles[0::2].copy()
    joined[: len(codes) // 2] |= nibbles[1::2] << np.uint8(4)
    return joined


def _split_nibbles(values: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    codes = np.empty(2 * len(values), np.int8)
    signed = values.view(np.int8)
    # Shifts of signed numbers carry the sign along.
    codes[0::2] = (signed << 4) >> 4
    codes[1::2] = signed >> 4
    return codes[:count]
