"""Codes and scales lose as little as their bits allow, at any magnitude."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slimdeploy.packed import Encoding, pack
from slimdeploy.quantize import LARGEST_SCALE, SMALLEST_SCALE, from_bf16, quantize, to_bf16

kinds = pytest.mark.parametrize(("largest", "group"), [(127, 0), (127, 128), (7, 128), (7, 32)])
# From the smallest subnormal to the largest number that every kind can hold.
LARGEST = 7 * LARGEST_SCALE
weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 150)),
    elements=st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
)


def errors(weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, group: int) -> np.ndarray:
    """weight - scale * code, in float64."""
    spread = np.repeat(from_bf16(scales).astype(np.float64), group or weight.shape[1], axis=1)[:, : weight.shape[1]]
    return np.asarray(weight - spread * codes)


def pruned_normal(rng: np.random.Generator, rows: int, columns: int, sparsity: float) -> np.ndarray:
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return np.where(np.abs(weight) > np.quantile(np.abs(weight), sparsity), weight, 0).astype(np.float32)


@kinds
@given(weight=weights)
def test_codes_and_scales_are_in_range(largest: int, group: int, weight: np.ndarray) -> None:
    codes, scales = quantize(weight, largest, group)
    assert codes.shape == weight.shape
    assert codes.dtype == np.int8
    assert np.abs(codes).max() <= largest
    assert scales.shape == (len(weight), -(-weight.shape[1] // (group or weight.shape[1])))
    assert ((scales >= 0x0D80) & (scales <= 0x6780)).all()
    assert not codes[weight == 0].any()


@kinds
@given(weight=weights)
def test_what_was_quantised_is_quantised_again_without_loss(largest: int, group: int, weight: np.ndarray) -> None:
    codes, scales = quantize(weight, largest, group)
    once = -errors(np.zeros_like(weight), codes, scales, group)
    again = -errors(np.zeros_like(weight), *quantize(once.astype(np.float32), largest, group), group)
    np.testing.assert_array_equal(again, once)


@given(weight=weights)
def test_an_int8_weight_is_at_most_half_a_step_away(weight: np.ndarray) -> None:
    codes, scales = quantize(weight, 127, 0)
    assert (np.abs(errors(weight, codes, scales, 0)) <= from_bf16(scales) * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("group", [128, 32])
@given(weight=weights)
def test_int4_scales_are_never_worse_than_the_largest_weight_by_seven(group: int, weight: np.ndarray) -> None:
    codes, scales = quantize(weight, 7, group)
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group].astype(np.float64)
        top = np.abs(part).max(axis=1, keepdims=True)
        plain = from_bf16(to_bf16(np.maximum(top / 7, SMALLEST_SCALE).astype(np.float32))).astype(np.float64)
        simple = part - plain * np.clip(np.rint(part / plain), -7, 7)
        found = errors(weight, codes, scales, group)[:, start : start + group]
        unit = np.where(top > 0, top, 1)
        assert (((found / unit) ** 2).sum(axis=1) <= ((simple / unit) ** 2).sum(axis=1) + 1e-5).all()


@pytest.mark.parametrize(("group", "sparsity", "gain"), [(128, 0.5, 0.85), (128, 0.7, 0.83), (32, 0.5, 0.82)])
def test_int4_scales_are_near_the_best_there_are(group: int, sparsity: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    weight = pruned_normal(rng, 64, 8 * group, sparsity)
    found = (errors(weight, *quantize(weight, 7, group), group) ** 2).sum()

    grouped = weight.reshape(-1, group)
    top = np.abs(grouped).max(axis=1, keepdims=True)
    best = np.full(len(grouped), np.inf)
    for place in [7, *np.linspace(4, 14, 300)]:
        scale = from_bf16(to_bf16((top / np.float32(place)).astype(np.float32)))
        error = ((grouped - scale * np.clip(np.rint(grouped / scale), -7, 7)) ** 2).sum(axis=1)
        if place == 7:
            simple = error.sum()
        best = np.minimum(best, error)
    assert found <= 1.02 * best.sum()
    assert found <= gain * simple


@kinds
def test_signs_and_powers_of_two_change_no_code(largest: int, group: int) -> None:
    weight = pruned_normal(np.random.default_rng(1), 16, 300, 0.5)
    codes, scales = quantize(weight, largest, group)
    mirrored, same_scales = quantize(-weight, largest, group)
    np.testing.assert_array_equal(mirrored, -codes)
    np.testing.assert_array_equal(same_scales, scales)
    same_codes, smaller = quantize(weight * np.float32(2.0**-40), largest, group)
    np.testing.assert_array_equal(same_codes, codes)
    np.testing.assert_array_equal(from_bf16(smaller), from_bf16(scales) * np.float32(2.0**-40))


@kinds
def test_rows_do_not_depend_on_each_other(largest: int, group: int) -> None:
    weight = pruned_normal(np.random.default_rng(2), 12, 500, 0.6)
    codes, scales = quantize(weight, largest, group)
    for row in range(len(weight)):
        alone, scale = quantize(weight[row : row + 1], largest, group)
        np.testing.assert_array_equal(alone[0], codes[row])
        np.testing.assert_array_equal(scale[0], scales[row])


@kinds
def test_the_ends_of_the_range_of_scales_are_used(largest: int, group: int) -> None:
    weight = np.float32([[largest, -largest, 1, -3, 0]])
    for bits, scale in ((0x0D80, SMALLEST_SCALE), (0x6780, LARGEST_SCALE)):
        codes, scales = quantize(weight * np.float32(scale), largest, group)
        np.testing.assert_array_equal(codes, weight)
        assert scales.tolist() == [[bits]]
    codes, scales = quantize(np.float32([[0.51, -0.49]]) * np.float32(SMALLEST_SCALE), largest, group)
    assert codes.tolist() == [[1, 0]]
    assert scales.tolist() == [[0x0D80]]


@kinds
def test_a_group_of_zeros_has_the_scale_one(largest: int, group: int) -> None:
    codes, scales = quantize(np.zeros((2, 200), np.float32), largest, group)
    assert not codes.any()
    assert (scales == 0x3F80).all()


@given(arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32)))
def test_bf16_rounds_as_torch_does(values: np.ndarray) -> None:
    ours, theirs = from_bf16(to_bf16(values)), torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_a_nan_of_any_bits_stays_nan() -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    assert np.isnan(from_bf16(to_bf16(bits.view(np.float32)))).all()


@pytest.mark.parametrize("encoding", [Encoding("bf16"), Encoding("int8"), Encoding("int4", 128)])
def test_packing_takes_less_memory_than_the_packed_weight_and_some_megabytes(encoding: Encoding) -> None:
    weight = pruned_normal(np.random.default_rng(3), 2048, 4096, 0.5)
    tracemalloc.start()
    packed = pack(weight, encoding, "unstructured")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # int4 codes have a byte each until they are joined.
    assert peak < packed.bytes + packed.kept + 12e6
