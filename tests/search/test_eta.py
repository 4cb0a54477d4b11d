"""eta is chosen by how J ranks what is known, and only that."""

import random
from operator import itemgetter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.search.eta import ETAS, Ranking, best_eta, rankings, spearman
from slimdeploy.search.fitness import Loss
from slimdeploy.search.verdicts import Scored

SAMPLES = [8, 16, 16, 24]
numbers = st.lists(st.integers(-9, 9), min_size=3, max_size=12)


@given(
    pairs=st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=12, unique_by=(itemgetter(0), itemgetter(1))
    )
)
def test_spearman_is_the_textbook_formula_where_no_values_are_equal(pairs: list[tuple[float, float]]) -> None:
    x, y = zip(*pairs, strict=True)
    places = [np.argsort(np.argsort(values)) for values in (x, y)]
    n = len(pairs)
    assert spearman(x, y) == pytest.approx(1 - 6 * float(((places[0] - places[1]) ** 2).sum()) / (n * (n**2 - 1)))


@given(values=numbers)
def test_spearman_knows_agreement_reversal_and_ties(values: list[int]) -> None:
    varied = len(set(values)) > 1
    assert spearman(values, [3 * value + 1 for value in values]) == pytest.approx(1 if varied else 0)
    assert spearman(values, [-value for value in values]) == pytest.approx(-1 if varied else 0)
    assert spearman([1, 1, 2], [1, 2, 2]) == pytest.approx(0.5)


def _policies(seed: int, hidden: float, noise: float, shift: float = 0.0) -> list[Scored]:
    """Policies whose divergence is -`hidden` times their norm term, seen through noise on each part."""
    rng = random.Random(seed)
    found = []
    for _ in range(12):
        norm = rng.uniform(-30, -10)
        losses = [Loss(shift + 1 + hidden * norm + rng.gauss(0, noise), 0.0) for _ in SAMPLES]
        found.append(Scored(tuple(losses), norm))
    return found


def test_eta_is_zero_where_the_loss_alone_ranks_perfectly() -> None:
    found = rankings([_policies(0, hidden=-0.05, noise=0.0)], SAMPLES)
    assert [ranking.eta for ranking in found] == list(ETAS)
    assert found[0].correlation == pytest.approx(1)
    assert best_eta(found) == 0


def test_eta_grows_where_the_norm_term_knows_what_noise_hides() -> None:
    found = rankings([_policies(seed, hidden=0.01, noise=0.3) for seed in range(4)], SAMPLES)
    assert best_eta(found) >= 0.02
    assert max(ranking.correlation for ranking in found) > found[0].correlation


def test_a_lead_that_may_be_luck_leaves_eta_at_zero() -> None:
    found = (Ranking(0.0, 0.28, 0.03), Ranking(0.01, 0.27, 0.02), Ranking(0.1, 0.30, 0.0))
    assert best_eta(found) == 0
    assert best_eta((Ranking(0.0, 0.28, 0.01), *found[1:])) == 0.1


def test_policies_of_different_judges_are_not_compared() -> None:
    """A second judge that finds everything better says nothing about the order."""
    first, second = _policies(1, hidden=-0.05, noise=0.0), _policies(2, hidden=0.05, noise=0.0, shift=9.0)
    apart = rankings([first, second], SAMPLES)
    assert apart[0].correlation == pytest.approx(1)
    assert [ranking.correlation for ranking in apart] == pytest.approx(
        [
            (a.correlation + b.correlation) / 2
            for a, b in zip(rankings([first], SAMPLES), rankings([second], SAMPLES), strict=True)
        ]
    )


def test_too_little_to_rank_gives_no_ranking_and_eta_zero() -> None:
    known = _policies(0, hidden=0.01, noise=0.1)
    one_part = [Scored(scored.losses[:1], scored.norm_term) for scored in known]
    for found in (rankings([], SAMPLES), rankings([known[:2]], SAMPLES), rankings([one_part], SAMPLES[:1])):
        assert found == ()
        assert best_eta(found) == 0
