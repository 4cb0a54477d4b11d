"""Penalties are those of OpenAI's reference and of transformers, and of all tokens that were there."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from slimdeploy.serve.engine import Sampling
from slimdeploy.serve.penalties import Penalties

VOCABULARY = 30
IDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=20)
LOGITS = np.random.default_rng(0).normal(0, 4, VOCABULARY).astype(np.float32)


def penalised(prompt: Sequence[int], answer: Sequence[int], sampling: Sampling) -> np.ndarray:
    penalties = Penalties(sampling, prompt)
    for token in answer:
        penalties.count(token)
    return penalties(LOGITS)


@given(IDS, IDS, st.floats(0.01, 100))
def test_the_repetition_penalty_is_transformers(prompt: list[int], answer: list[int], penalty: float) -> None:
    given_ids = torch.tensor([prompt + answer], dtype=torch.long)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(given_ids, torch.from_numpy(LOGITS.copy())[None])[0].numpy()
    ours = penalised(prompt, answer, Sampling(1, repetition_penalty=penalty))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@given(IDS, IDS, st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 2))
def test_presence_counts_once_and_frequency_every_time_in_the_answer_alone(
    prompt: list[int], answer: list[int], presence: float, frequency: float, repetition: float
) -> None:
    expected = []
    for token, logit in enumerate(LOGITS.tolist()):
        if token in prompt + answer:
            logit = logit / repetition if logit > 0 else logit * repetition
        expected.append(logit - frequency * answer.count(token) - presence * (token in answer))
    sampling = Sampling(1, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(penalised(prompt, answer, sampling), expected, rtol=1e-5, atol=1e-5)


def test_without_penalties_nothing_is_copied() -> None:
    assert penalised([1, 2], [3], Sampling(1)) is LOGITS
