"""What the kernels compute, in float64: the truth that every one of them is checked against. numpy only.

Before a product with a packed weight activations are rounded as the kernels round them, because that is part of the
operator's meaning: to eight bits per row of x for integer weights, to bf16 for bf16 weights, not at all for fp16
weights. The sums are then in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..packed import Encoding, PackedTensor, unpack
from ..quantize import from_bf16, to_bf16


def linear(packed: PackedTensor, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """y = x W^T of the rounded activations. x: (..., columns). Returns (..., rows).

    NaN or infinity in a row of x: NaN in its whole row of y for integer weights, NaN or infinity for the others.
    """
    weight = unpack(packed).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(round_activations(packed.encoding, x) @ weight.T)


def attention(
    query: NDArray[np.float32],
    key: NDArray[np.float32],
    value: NDArray[np.float32],
    past: tuple[NDArray[np.float32], NDArray[np.float32]],
    last: Sequence[int],
    scale: float,
) -> NDArray[np.float64]:
    """What `kernels.attention.attend` returns, with the same arguments; the cache is left as it is."""
    output = np.zeros(query.shape)
    tokens, heads = query.shape[1:3]
    group = heads // key.shape[2]
    for b, number in enumerate(last):
        before = max(number + 1 - tokens, 0)
        new = number + 1 - before
        keys, values = (
            np.concatenate([cache[b, :, :before], fresh[b, :new].swapaxes(0, 1)], axis=1).astype(np.float64)
            for cache, fresh in zip(past, (key, value), strict=True)
        )
        for head in range(heads):
            scores = scale * query[b, :new, head].astype(np.float64) @ keys[head // group].T
            scores[np.arange(before + new) > before + np.arange(new)[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            output[b, :new, head] = weights / weights.sum(axis=1, keepdims=True) @ values[head // group]
    return output


def round_activations(encoding: Encoding, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The activations that a weight of this encoding is multiplied with. x: (..., columns)."""
    assert x.dtype == np.float32, f"activations are float32, not {x.dtype}"
    match encoding.values:
        case "bf16":
            return from_bf16(to_bf16(x)).astype(np.float64)
        case "fp16":
            return x.astype(np.float64)
        case "int8" | "int4":
            return _round_to_eight_bits(x)


def _round_to_eight_bits(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """s * q with q = round_half_even(x * 127/a), s = a/127, a = max|x| of the row; float32 up to s and q."""
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    x = np.where(finite, x, np.float32(0))
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30))
    codes = np.rint(x * (np.float32(127) / largest))
    rounded = codes.astype(np.float64) * (largest / np.float32(127)).astype(np.float64)
    return np.where(finite, rounded, np.nan)
