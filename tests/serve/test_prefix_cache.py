"""What is kept is found again by its longest prefix, whole in its pieces, and never takes more than the budget."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.serve.engines.prefix_cache import FEWEST_TOKENS, Pieces, PrefixCache

HEAD = tuple(range(100, 100 + FEWEST_TOKENS))
"""As many tokens as a prefix needs."""


@dataclass(frozen=True)
class Block:
    """Stands for arrays; tokens tells whose they are."""

    tokens: tuple[int, ...]
    nbytes: int


Cache = PrefixCache[Block, Block]


def keep(cache: Cache, tokens: Sequence[int], in_run: Sequence[bool] | None = None) -> None:
    """A byte for every token."""
    block = Block(tuple(tokens), len(tokens))
    cache.keep_sequence(Pieces.of(tokens, in_run), block.nbytes, lambda: block)


def found(cache: Cache, tokens: Sequence[int], in_run: Sequence[bool] | None = None) -> int:
    """Tokens of the longest prefix, which is one of the sequence that is given for it."""
    prefix = cache.longest_prefix(Pieces.of(tokens, in_run))
    if prefix is None:
        return 0
    assert prefix.past.tokens[: prefix.tokens] == tuple(tokens)[: prefix.tokens]
    return prefix.tokens


def test_the_longest_common_prefix_is_found() -> None:
    cache = Cache(1000)
    keep(cache, (*HEAD, 1))
    keep(cache, (*HEAD, *range(40)))
    keep(cache, range(60))
    assert found(cache, (*HEAD, 0, 1, 2, 7, 4)) == len(HEAD) + 3
    assert found(cache, (*HEAD, *range(50))) == len(HEAD) + 40
    assert found(cache, range(500, 600)) == 0


def test_the_last_token_of_a_prompt_is_always_left() -> None:
    cache = Cache(1000)
    keep(cache, (*HEAD, 1, 2))
    assert found(cache, (*HEAD, 1, 2)) == found(cache, (*HEAD, 1)) + 1 == len(HEAD) + 1


def test_a_short_prefix_is_not_worth_it() -> None:
    cache = Cache(1000)
    keep(cache, (*HEAD, 1))
    assert found(cache, (*HEAD[:-1], 7, 8)) == 0
    assert found(cache, (*HEAD, 8)) == FEWEST_TOKENS


def test_a_run_is_never_parted() -> None:
    cache = Cache(1000)
    in_run = [False] * len(HEAD) + [True] * 4 + [False] * 2
    keep(cache, (*HEAD, 1, 2, 3, 4, 5, 6), in_run)
    assert found(cache, (*HEAD, 1, 2, 3, 4, 5, 8), in_run) == len(HEAD) + 5
    assert found(cache, (*HEAD, 1, 2, 3, 8, 5, 6), in_run) == len(HEAD), "another run of equal length"
    assert found(cache, (*HEAD, 1, 2, 3, 8), [*in_run[:-3], False]) == len(HEAD), "a shorter run that it begins with"
    assert found(cache, (*HEAD, 1, 2, 3, 4), in_run[:-2]) == len(HEAD), "its last token may not be left alone"


@given(st.lists(st.booleans(), max_size=12))
def test_pieces_are_runs_and_single_tokens(in_run: list[bool]) -> None:
    pieces = Pieces.of(range(len(in_run)), in_run)
    assert [token for key in pieces.keys for token in key] == [*range(len(in_run))]  # type: ignore[attr-defined]
    starts = {0, *pieces.ends}
    assert pieces.ends[-1:] == (len(in_run),)[: len(in_run)]
    assert all((i in starts) != (in_run[i - 1] and in_run[i]) for i in range(1, len(in_run)))


def test_what_was_used_least_recently_goes_first() -> None:
    cache = Cache(60)
    keep(cache, (*HEAD, 1, 1, 1, 1))
    cache.keep_picture(b"a", Block((), 10))
    cache.keep_picture(b"b", Block((), 30))
    assert cache.picture(b"a")
    assert found(cache, (*HEAD, 1, 2))
    cache.keep_picture(b"c", Block((), 20))
    assert cache.picture(b"b") is None
    cache.keep_picture(b"d", Block((), 12))
    assert cache.picture(b"a") is None
    assert found(cache, (*HEAD, 1, 2))
    assert cache.nbytes == 20 + 20 + 12


def test_what_exceeds_the_budget_is_not_even_copied() -> None:
    cache = Cache(20)
    cache.keep_picture(b"a", Block((), 21))
    cache.keep_sequence(Pieces.of(range(21)), 21, lambda: pytest.fail("it was copied"))
    assert cache.picture(b"a") is None
    assert cache.nbytes == 0


def test_a_sequence_that_another_one_begins_with_is_not_kept_twice() -> None:
    cache = Cache(1000)
    keep(cache, (*HEAD, 1, 2, 3))
    cache.keep_sequence(Pieces.of((*HEAD, 1)), 17, lambda: pytest.fail("it was copied"))
    keep(cache, (*HEAD, 1, 2, 3, 4))
    assert cache.nbytes == len(HEAD) + 4


def test_questions_about_one_picture_replace_each_other_and_conversations_do_not() -> None:
    cache = Cache(1000)
    keep(cache, (*HEAD, *[1] * 10))
    keep(cache, (*HEAD, *[2] * 10))
    assert cache.nbytes == len(HEAD) + 10, "most of the first is in the second"
    keep(cache, (*HEAD, *[3] * 40))
    keep(cache, (*HEAD, *[4] * 40))
    assert found(cache, (*HEAD, *[3] * 50)) == found(cache, (*HEAD, *[4] * 50)) == len(HEAD) + 40


@pytest.mark.parametrize(("budget", "there"), [(60, True), (30, False)])
def test_what_a_sequence_replaces_is_found_until_it_is_copied_where_both_have_room(budget: int, there: bool) -> None:
    cache = Cache(budget)
    keep(cache, (*HEAD, *[1] * 10))
    block = Block((*HEAD, *[2] * 10), len(HEAD) + 10)

    def copy() -> Block:
        assert cache.nbytes <= budget
        assert (found(cache, (*HEAD, 3)) > 0) == there
        return block

    cache.keep_sequence(Pieces.of(block.tokens), block.nbytes, copy)
    assert found(cache, (*block.tokens, 3)) == cache.nbytes == block.nbytes


def test_what_cannot_be_copied_takes_no_room() -> None:
    def fail() -> Block:
        raise MemoryError

    cache, sequence = Cache(100), Pieces.of((*HEAD, 1))
    with pytest.raises(MemoryError):
        cache.keep_sequence(sequence, 50, fail)
    assert cache.nbytes == 0
    assert found(cache, (*HEAD, 1, 2)) == 0


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=6)), max_size=30))
def test_the_budget_is_kept_and_what_is_found_is_right(steps: list[tuple[bool, list[int]]]) -> None:
    cache, kept = Cache(90), []
    for asks, ending in steps:
        tokens = (*HEAD, *ending)
        if asks:
            assert found(cache, tokens) <= max((_common(tokens[:-1], other) for other in kept), default=0)
            assert not kept or found(cache, tokens) >= _common(tokens[:-1], kept[-1]), "the newest is always there"
        else:
            keep(cache, tokens)
            kept.append(tokens)
            assert found(cache, (*tokens, 9)) == len(tokens)
        assert cache.nbytes <= 90


def test_threads_may_share_it() -> None:
    cache = Cache(150)

    def work(seed: int) -> None:
        rng = Random(seed)
        for _ in range(200):
            tokens = (*HEAD, *rng.choices(range(3), k=rng.randint(1, 30)))
            found(cache, tokens)
            keep(cache, tokens)
            digest = bytes([rng.randrange(4)])
            if cache.picture(digest) is None:
                cache.keep_picture(digest, Block((), rng.randint(1, 60)))
            assert cache.nbytes <= 150

    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(work, range(8))] == [None] * 8


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
