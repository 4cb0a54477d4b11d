"""Causal attention over a cache of keys and values, by the compiled kernels. Knows the C interface and no runtime."""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .library import ERROR_BYTES, Floats, encoded_name, require_library


class _Attention(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("cache_rows", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("past_key", ctypes.c_void_p),
        ("past_value", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
    )


def attend(
    query: Floats,
    key: Floats,
    value: Floats,
    past: tuple[Floats, Floats],
    last: Sequence[int] | NDArray[np.int32],
    scale: float,
    *,
    rows: Sequence[int] | None = None,
    threads: int = 1,
    instruction_set: str | None = None,
) -> Floats:
    """Softmax attention of new tokens, which are written into the cache.

    query: (batch, tokens, heads, size). key, value: (batch, tokens, KV heads, size), of the same tokens. past: keys and
    values, (rows of the cache, KV heads, capacity, size). last: the number of each sequence's last token, from 0. Of a
    sequence shorter than `tokens` all are new, and what is behind them is padding, of which zeros come. rows: each
    sequence's, its own number by default; those with one row are pieces of one sequence. All arrays are contiguous,
    those of floats float32. Returns (batch, tokens, heads, size). Raises ConfigError for numbers that do not fit.
    """
    batch, tokens, heads, size = query.shape
    cache_rows, kv_heads, capacity, _ = past[0].shape
    lasts = np.ascontiguousarray(last, np.int32)
    places = np.arange(batch) if rows is None else np.ascontiguousarray(rows, np.int64)
    output = np.empty_like(query)
    for array in (query, key, value, *past):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    assert key.shape == value.shape == (batch, tokens, kv_heads, size)
    assert past[0].shape == past[1].shape == (cache_rows, kv_heads, capacity, size)
    assert lasts.shape == places.shape == (batch,)
    addresses = (array.ctypes.data for array in (query, key, value, *past, places, lasts, output))
    asked = _Attention(batch, tokens, cache_rows, capacity, heads, kv_heads, size, scale, *addresses)
    error = ctypes.create_string_buffer(ERROR_BYTES)
    code = require_library().slimdeploy_attend(
        ctypes.byref(asked), encoded_name(instruction_set), threads, None, None, error, ERROR_BYTES
    )
    if code:
        raise ConfigError(error.value.decode())
    return output
