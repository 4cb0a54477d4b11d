"""Attention equals float64 on every instruction set of this CPU, writes what is new into the cache and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slimdeploy.errors import ConfigError
from slimdeploy.kernels import reference
from slimdeploy.kernels.attention import attend
from slimdeploy.kernels.library import instruction_sets, library_file

if library_file() is None:
    pytest.skip("the kernels are not built: apt-get install g++ cmake, make install", allow_module_level=True)

SETS = [each.name for each in instruction_sets() if each.supported]
TOLERANCES = {name: 2e-5 if name == "amx" else 2e-6 for name in SETS}
"""Tiles multiply halves of numbers, and leave out the products of low ones."""
sets = pytest.mark.parametrize("name", SETS)
Floats = NDArray[np.float32]


def asked(
    heads: tuple[int, int], size: int, tokens: int, last: Sequence[int], capacity: int, seed: int = 0
) -> tuple[Floats, Floats, Floats, tuple[Floats, Floats]]:
    """Query, key, value and past. heads: of queries, and of keys and values."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    batch = len(last)
    new = (floats(batch, tokens, count, size) for count in (heads[0], heads[1], heads[1]))
    query, key, value = new
    return query, key, value, (floats(batch, heads[1], capacity, size), floats(batch, heads[1], capacity, size))


def relative_error(found: NDArray[Any], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@sets
@pytest.mark.parametrize(
    ("heads", "size", "tokens", "last", "capacity"),
    [
        ((32, 4), 64, 1, [640], 704),
        ((32, 32), 128, 1, [63], 64),
        ((8, 8), 72, 37, [60], 64),
        ((6, 2), 80, 20, [19, 4, 11], 40),
        ((4, 1), 8, 1, [0, 9], 10),
        ((7, 1), 20, 5, [257], 300),
        ((80, 2), 16, 3, [70], 71),
        ((2, 2), 256, 130, [129], 130),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_shape_equals_float64(
    name: str, heads: tuple[int, int], size: int, tokens: int, last: list[int], capacity: int, threads: int
) -> None:
    query, key, value, past = asked(heads, size, tokens, last, capacity)
    expected = reference.attention(query, key, value, past, last, size**-0.5)
    found = attend(query, key, value, past, last, size**-0.5, threads=threads, instruction_set=name)
    assert relative_error(found, expected) < TOLERANCES[name]


@settings(max_examples=60)
@given(
    st.sampled_from(SETS),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 100),
    st.integers(1, 40),
    st.lists(st.integers(0, 150), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_any_shape_equals_float64(
    name: str, kv_heads: int, group: int, size: int, tokens: int, last: list[int], seed: int
) -> None:
    query, key, value, past = asked((kv_heads * group, kv_heads), size, tokens, last, max(last) + 1, seed)
    expected = reference.attention(query, key, value, past, last, 0.3)
    assert relative_error(attend(query, key, value, past, last, 0.3, instruction_set=name), expected) < TOLERANCES[name]


@sets
def test_new_keys_and_values_are_in_the_cache_and_nothing_else_has_changed(name: str) -> None:
    query, key, value, past = asked((4, 2), 24, 5, [6, 2, 9], 12)
    before = [cache.copy() for cache in past]
    attend(query, key, value, past, [6, 2, 9], 0.2, instruction_set=name)
    for cache, old, new in zip(past, before, (key, value), strict=True):
        for b, places in enumerate((slice(2, 7), slice(0, 3), slice(5, 10))):
            old[b, :, places] = new[b, : places.stop - places.start].swapaxes(0, 1)
        np.testing.assert_array_equal(cache, old)


@sets
def test_padding_gives_zeros_whatever_is_in_it(name: str) -> None:
    query, key, value, past = asked((4, 2), 24, 6, [5, 1], 8)
    query[1, 2:], key[1, 2:], value[1, 2:] = np.nan, np.inf, np.nan
    found = attend(query, key, value, past, [5, 1], 0.2, instruction_set=name)
    assert np.isfinite(found).all()
    assert not found[1, 2:].any()


@sets
def test_a_prompt_read_in_pieces_is_the_prompt_read_at_once(name: str) -> None:
    query, key, value, past = asked((8, 2), 64, 90, [89], 90)
    whole = attend(query, key, value, past, [89], 0.125, instruction_set=name)
    pieces = []
    for start, end in ((0, 1), (1, 40), (40, 90)):
        part = (np.ascontiguousarray(array[:, start:end]) for array in (query, key, value))
        pieces.append(attend(*part, past, [end - 1], 0.125, instruction_set=name))
    assert relative_error(np.concatenate(pieces, axis=1), whole.astype(np.float64)) < TOLERANCES[name]


@sets
def test_tokens_with_one_row_of_the_cache_are_pieces_of_one_sequence(name: str) -> None:
    query, key, value, past = asked((8, 2), 64, 12, [40], 50)
    whole = attend(query, key, value, past, [40], 0.125, instruction_set=name)
    # The last tokens of this sequence one by one, among them two others, in a cache with more rows.
    single = [np.ascontiguousarray(array.swapaxes(0, 1)) for array in (query, key, value)]
    rows, last = [3] * 12, list(range(29, 41))
    rows[5], last[5], rows[11], last[11] = 0, 7, 2, 0
    missing = [34, 40]
    caches = tuple(np.random.default_rng(1).standard_normal((4, 2, 50, 64)).astype(np.float32) for _ in past)
    for cache, filled in zip(caches, past, strict=True):
        cache[3] = filled[0]
    others = [cache[[0, 2]].copy() for cache in caches]
    found = attend(*single, caches, last, 0.125, rows=rows, instruction_set=name)
    kept = [i for i in range(12) if last[i] > 28 and last[i] not in missing]
    assert relative_error(found[kept, 0], whole[0, kept].astype(np.float64)) < TOLERANCES[name]
    for which, (row, place) in enumerate(((0, 7), (2, 0))):
        step = (5, 11)[which]
        own = tuple(other[which : which + 1] for other in others)
        exact = reference.attention(*(array[step : step + 1] for array in single), own, [place], 0.125)
        assert relative_error(found[step : step + 1], exact) < TOLERANCES[name]
        np.testing.assert_array_equal(caches[0][row, :, place], single[1][step, 0])


@sets
def test_scores_far_apart_neither_overflow_nor_vanish(name: str) -> None:
    query, key, value, past = asked((2, 1), 16, 4, [300], 301)
    query *= 3e3
    expected = reference.attention(query, key, value, past, [300], 1.0)
    found = attend(query, key, value, past, [300], 1.0, instruction_set=name)
    assert relative_error(found, expected) < 1e-3  # float32 knows scores of 1e4 to 1e-3


@sets
@pytest.mark.parametrize("token", [0, 1, 2, 3])
@pytest.mark.parametrize("spoilt", ["query", "key", "value"])
def test_what_is_not_finite_spoils_those_who_see_it_and_no_other_sequence(name: str, spoilt: str, token: int) -> None:
    """Earlier tokens of its own sequence may be spoilt too: their weight for it is zero, and zero times NaN is NaN."""
    query, key, value, past = asked((2, 1), 16, 4, [9, 9], 10)
    {"query": query, "key": key, "value": value}[spoilt][0, token] = np.nan
    found = np.isnan(attend(query, key, value, past, [9, 9], 0.25, instruction_set=name)).all(axis=(2, 3))
    assert found[0, token]
    assert spoilt == "query" or found[0, token:].all()
    assert not found[1].any()


@pytest.mark.parametrize(
    ("last", "heads", "sentence"),
    [
        ([10], (4, 2), "last token is number 10, and there is room for 10"),
        ([-1], (4, 2), "last token is number -1"),
        ([3], (4, 3), "4 heads cannot share those of 3 keys"),
    ],
)
def test_what_makes_no_sense_is_refused(last: list[int], heads: tuple[int, int], sentence: str) -> None:
    query, key, value, past = asked(heads, 16, 1, last, 10)
    with pytest.raises(ConfigError, match=sentence):
        attend(query, key, value, past, last, 0.25)


@pytest.mark.parametrize("row", [-1, 1])
def test_a_row_that_the_cache_does_not_have_is_refused(row: int) -> None:
    query, key, value, past = asked((4, 2), 16, 1, [3], 10)
    with pytest.raises(ConfigError, match=f"is to have row {row} of a cache with 1"):
        attend(query, key, value, past, [3], 0.25, rows=[row])
