"""Tokens follow the distribution that the settings describe; fast code chooses as plain code does."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from slimdeploy.serve.engine import RequestError, Sampling
from slimdeploy.serve.penalties import Logits
from slimdeploy.serve.sampling import Sampler, candidates, kth_largest

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
# Steps of a quarter give many that are equal.
SOME_LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=300)
SHARES = st.floats(0, 1)


def new_sampler(**settings: Any) -> Sampler:
    return Sampler(Sampling(1, **settings), ())


def draws(logits: Logits, count: int, **settings: Any) -> list[int]:
    """Tokens of one answer whose logits stay the same."""
    sampler = new_sampler(**{"seed": 0} | settings)
    return [sampler(logits) for _ in range(count)]


def plain_candidates(logits: Sequence[float], sampling: Sampling) -> dict[int, float]:
    """What may be drawn and how probably, by full sorts and loops."""
    likeliest = max(logits)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weight = {token: math.exp((logits[token] - likeliest) / sampling.temperature) for token in order}
    kept = [token for token in order if weight[token] >= sampling.min_p * (1 - 1e-9)]
    if sampling.top_k > 0:
        kept = [token for token in kept if logits[token] >= logits[order[min(sampling.top_k, len(order)) - 1]]]
    if sampling.top_p < 1:
        total, held, nucleus = sum(weight[token] for token in kept), 0.0, []
        for token in kept:
            if nucleus and held >= sampling.top_p * total * (1 - 1e-9) and logits[token] < logits[nucleus[-1]]:
                break
            nucleus.append(token)
            held += weight[token]
        kept = nucleus
    total = sum(weight[token] for token in kept)
    return {token: weight[token] / total for token in kept}


def kept_by(warper: Any, logits: Logits) -> set[int]:
    scores = warper(torch.tensor([[0]]), torch.from_numpy(logits)[None])[0]
    return set(torch.isfinite(scores).nonzero().flatten().tolist())


def kept(logits: Logits, **settings: Any) -> set[int]:
    return set(candidates(logits, Sampling(1, **settings))[0])


def test_temperature_0_is_greedy() -> None:
    assert draws(LOGITS, 50, temperature=0.0) == [1] * 50


@pytest.mark.parametrize("temperature", [1e-300, 1e-9])
def test_a_tiny_temperature_is_greedy_and_finite(temperature: float) -> None:
    assert draws(LOGITS, 50, temperature=temperature) == [1] * 50


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.5])
def test_the_likeliest_token_always_stays(top_p: float) -> None:
    assert draws(LOGITS, 50, top_p=top_p, min_p=1.0, top_k=1) == [1] * 50


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_p": 0.8},
        {"top_k": 5},
        {"top_k": -1},
        {"min_p": 0.02},
        {"temperature": 1.3, "min_p": 0.05, "top_k": 9, "top_p": 0.9},
    ],
)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).normal(0, 1.5, 20).astype(np.float32)
    expected = plain_candidates(logits.tolist(), Sampling(1, **settings))
    drawn = np.bincount(draws(logits, 20_000, **settings), minlength=len(logits))
    assert set(np.flatnonzero(drawn)) <= set(expected)
    tokens = list(expected)
    assert chisquare(drawn[tokens], np.array(list(expected.values())) * 20_000).pvalue > 0.01


@given(SOME_LOGITS, st.floats(0.05, 2), st.integers(-1, 310), SHARES, SHARES)
def test_candidates_and_their_probabilities_are_those_of_a_full_sort(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens, weights = candidates(np.array(logits, np.float32), sampling)
    found = dict(zip(tokens, weights / weights.sum(), strict=True))
    assert found == pytest.approx(plain_candidates(logits, sampling))


@given(st.lists(st.integers(-9, 9) | st.just(-math.inf), min_size=1, max_size=400), st.data())
def test_the_kth_largest_is_that_of_a_full_sort(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    assert kth_largest(np.array(values, np.float32), k) == sorted(values)[-k]


@given(SOME_LOGITS, st.integers(1, 310))
def test_top_k_keeps_what_transformers_keeps(values: list[float], top_k: int) -> None:
    logits = np.array(values, np.float32)
    assert kept(logits, top_k=top_k) == kept_by(TopKLogitsWarper(top_k), logits)


@given(st.integers(0, 2**32), st.floats(0.001, 1))
def test_min_p_keeps_what_transformers_keeps(seed: int, min_p: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 500).astype(np.float32)
    # A share that is met exactly may round to either side.
    unlike = kept(logits, min_p=min_p) ^ kept_by(MinPLogitsWarper(min_p), logits)
    shares = np.exp(logits - logits.max())
    assert all(shares[token] == pytest.approx(min_p, rel=1e-5) for token in unlike)


@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_top_p_keeps_what_transformers_keeps(seed: int, top_p: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 500).astype(np.float32)
    unlike = kept(logits, top_p=top_p) ^ kept_by(TopPLogitsWarper(top_p), logits)
    assert len(unlike) <= 1  # where a sum in 32 bits meets the share


def test_min_p_is_of_the_probabilities_that_the_temperature_made() -> None:
    assert kept(LOGITS, min_p=0.6) == {1}
    assert kept(LOGITS, min_p=0.6, temperature=2.0) == {1, 3}


def test_top_p_is_of_what_top_k_leaves() -> None:
    assert kept(LOGITS, top_p=0.7) == {1, 3}
    assert kept(LOGITS, top_p=0.6, top_k=2) == {1}


def test_equal_logits_stay_together() -> None:
    logits = np.zeros(1000, np.float32)
    for settings in ({"top_k": 5}, {"top_p": 0.5}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert len(kept(logits, **settings)) == 1000


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    for settings in ({}, {"top_k": 4}, {"top_p": 0.999}):
        assert set(draws(logits, 200, **settings)) == {1, 3}


@given(st.integers(-(2**63), 2**63 - 1))
def test_equal_seeds_give_equal_tokens(seed: int) -> None:
    settings = {"seed": seed, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "top_k": 3}
    assert draws(LOGITS, 20, **settings) == draws(LOGITS, 20, **settings)


def test_without_a_seed_answers_differ() -> None:
    logits = np.zeros(1000, np.float32)
    assert draws(logits, 20, seed=None) != draws(logits, 20, seed=None)


def test_penalties_make_a_greedy_answer_go_on() -> None:
    logits = np.array([1.0, 0.9, 0.5], np.float32)
    assert draws(logits, 4, temperature=0.0) == [0, 0, 0, 0]
    assert draws(logits, 4, temperature=0.0, presence_penalty=2.0) == [0, 1, 2, 0]
    assert draws(logits, 4, temperature=0.0, frequency_penalty=0.3) == [0, 1, 0, 1]
    assert Sampler(Sampling(1, temperature=0.0, repetition_penalty=1.2), prompt_ids=(0,))(logits) == 1


def test_the_models_logits_are_left_as_they_are() -> None:
    logits = LOGITS.copy()
    draws(logits, 20, repetition_penalty=1.5, presence_penalty=1.0, temperature=0.7, top_p=0.9, top_k=3, min_p=0.1)
    assert logits.tolist() == LOGITS.tolist()


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "max_tokens": (0, -5),
        "temperature": (-0.1, 2.1, math.nan),
        "top_p": (-0.1, 1.1, math.nan),
        "top_k": (-2,),
        "min_p": (-0.1, 1.1),
        "repetition_penalty": (0.0, -1.0, math.inf),
        "presence_penalty": (-2.1, 2.1),
        "frequency_penalty": (-2.1, 2.1),
        "logprobs": (-1, 21),
        "stop": (("a", ""),),
    }.items(),
)
def test_a_setting_out_of_range_is_named(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"^'{name}'") as caught:
            Sampling(**{"max_tokens": 1, name: value})
        assert caught.value.param == name
