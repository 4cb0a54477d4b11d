"""The reference is what the operator's definition says, written out one number at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packed_weights import ENCODINGS, PATTERNS, decode_plainly, label, random_packed

from slimdeploy.kernels.reference import linear, round_activations
from slimdeploy.packed import Encoding, PackedTensor
from slimdeploy.quantize import from_bf16, to_bf16

encodings = pytest.mark.parametrize("encoding", ENCODINGS, ids=label)


def packed_weight(encoding: Encoding, pattern: str = "unstructured", rows: int = 4, columns: int = 95) -> PackedTensor:
    return random_packed(np.random.default_rng(5), encoding, pattern, rows, columns)


def rounded_plainly(row: np.ndarray) -> list[float]:
    """To eight bits, in float32 step by step."""
    largest = np.float32(1e-30)
    for value in row:
        largest = max(largest, np.float32(abs(value)))
    inverse, step = np.float32(127) / largest, largest / np.float32(127)
    return [float(step) * round(float(np.float32(value * inverse))) for value in row]


@pytest.mark.parametrize("pattern", PATTERNS)
@encodings
def test_a_product_is_what_the_definition_says(encoding: Encoding, pattern: str) -> None:
    packed = packed_weight(encoding, pattern)
    x = np.random.default_rng(6).standard_normal((3, packed.columns)).astype(np.float32)
    weight, y = decode_plainly(packed), linear(packed, x)
    for row, result in zip(x, y, strict=True):
        match encoding.values:
            case "bf16":
                used = [float(value) for value in from_bf16(to_bf16(row))]
            case "fp16":
                used = [float(value) for value in row]
            case _:
                used = rounded_plainly(row)
        expected = [math.fsum(a * b for a, b in zip(used, out, strict=True)) for out in weight]
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 20)),
        elements=st.floats(width=32, allow_infinity=False, allow_nan=False),
    )
)
def test_eight_bits_are_enough_for_half_a_step(x: np.ndarray) -> None:
    rounded = round_activations(Encoding("int8"), x)
    step = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30)).astype(np.float64) / 127
    assert (np.abs(rounded - x) <= step * (0.5 + 1e-4)).all()
    for row, result in zip(x, rounded, strict=True):
        assert result.tolist() == rounded_plainly(row)


def test_halves_are_rounded_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    assert round_activations(Encoding("int4", 32), x).tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_bf16_weights_take_activations_rounded_to_bf16() -> None:
    # Half a step of bf16 is 2**-8: to even, and beyond it away.
    x = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 - 2.0**-20, 3.0], np.float32)
    assert round_activations(Encoding("bf16"), x).tolist() == [1.0, 1 + 2.0**-6, -1 - 2.0**-7, 3.0]
    np.testing.assert_array_equal(round_activations(Encoding("fp16"), x), x)


@encodings
def test_rows_of_x_are_rounded_on_their_own_and_any_number_of_axes_is_taken(encoding: Encoding) -> None:
    packed = packed_weight(encoding)
    x = np.random.default_rng(8).standard_normal((2, 3, packed.columns)).astype(np.float32)
    x[0, 1] *= 1e6
    y = linear(packed, x)
    assert y.shape == (2, 3, packed.rows)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(linear(packed, x[place]), y[place], rtol=1e-12, atol=1e-12)


@encodings
def test_zeros_give_zeros(encoding: Encoding) -> None:
    packed = packed_weight(encoding)
    assert not linear(packed, np.zeros((2, packed.columns), np.float32)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@encodings
def test_nan_or_infinity_spoils_its_whole_row_and_no_other(encoding: Encoding, bad: float) -> None:
    packed = packed_weight(encoding)
    x = np.ones((3, packed.columns), np.float32)
    x[1, 7] = bad
    y = linear(packed, x)
    spoilt = np.isnan(y[1]) if encoding.values in ("int8", "int4") else ~np.isfinite(y[1])
    assert spoilt.all()
    assert np.isfinite(y[[0, 2]]).all()


@encodings
@given(data=st.data())
@settings(max_examples=25)
def test_the_product_is_near_the_unrounded_one(encoding: Encoding, data: st.DataObject) -> None:
    packed = packed_weight(encoding, rows=6, columns=data.draw(st.sampled_from([1, 63, 65, 255])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.standard_normal((2, packed.columns)).astype(np.float32) * np.float32(
        10.0 ** data.draw(st.integers(-20, 20))
    )
    exact = x.astype(np.float64) @ decode_plainly(packed).T
    scale = np.linalg.norm(x.astype(np.float64)) * np.linalg.norm(decode_plainly(packed))
    assert np.linalg.norm(linear(packed, x) - exact) <= 0.02 * scale
