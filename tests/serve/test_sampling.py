"""Sampling follows the distribution that temperature and top_p describe."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.serve.engine import Sampling
from slimdeploy.serve.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draw(count: int = 4000, **settings: float) -> np.ndarray:
    sampler = Sampler(Sampling(1, seed=0, **settings))
    return np.bincount([sampler(LOGITS) for _ in range(count)], minlength=4) / count


def test_temperature_0_is_greedy() -> None:
    assert draw(50, temperature=0.0).tolist() == [0, 1, 0, 0]


def test_temperature_1_draws_the_models_distribution() -> None:
    np.testing.assert_allclose(draw(), np.exp(LOGITS), atol=0.03)


def test_temperature_sharpens() -> None:
    expected = np.exp(LOGITS * 2) / np.exp(LOGITS * 2).sum()
    np.testing.assert_allclose(draw(temperature=0.5), expected, atol=0.03)


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    assert draw(50, temperature=1e-300).tolist() == [0, 1, 0, 0]


def test_top_p_keeps_the_smallest_set_that_holds_the_share() -> None:
    np.testing.assert_allclose(draw(top_p=0.7), [0, 2 / 3, 0, 1 / 3], atol=0.03)
    np.testing.assert_allclose(draw(top_p=0.8), [0, 5 / 9, 1 / 6, 5 / 18], atol=0.03)


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.5])
def test_the_likeliest_token_always_stays(top_p: float) -> None:
    assert draw(50, top_p=top_p).tolist() == [0, 1, 0, 0]


@given(st.integers(-(2**63), 2**63 - 1))
def test_equal_seeds_give_equal_tokens(seed: int) -> None:
    first, second = (Sampler(Sampling(1, seed=seed)) for _ in range(2))
    assert [first(LOGITS) for _ in range(20)] == [second(LOGITS) for _ in range(20)]


def test_without_a_seed_answers_differ() -> None:
    logits = np.zeros(1000, np.float32)
    first, second = (Sampler(Sampling(1)) for _ in range(2))
    assert [first(logits) for _ in range(20)] != [second(logits) for _ in range(20)]
