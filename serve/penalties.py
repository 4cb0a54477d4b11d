"""What is added to logits: biases as asked, and penalties for tokens that were there before."""

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from .engine import Sampling

Logits = NDArray[np.float32]


class Penalties:
    """The biases and penalties of one answer; the latter grow as it does."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        self._repetition = sampling.repetition_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._change_nothing = (self._repetition, self._presence, self._frequency) == (1, 0, 0)
        self._biased = np.fromiter(sampling.logit_bias, np.intp)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._times_in_answer = dict.fromkeys(prompt_ids, 0)

    def count(self, token: int) -> None:
        """The answer has this token once more."""
        self._times_in_answer[token] = self._times_in_answer.get(token, 0) + 1

    def __call__(self, logits: Logits) -> Logits:
        """Logits, (vocabulary,), with biases, of which those of tokens in the prompt or the answer are lowered.

        Repetition: for both (CTRL, Keskar et al. 2019, section 4.1; a negative logit is multiplied, as transformers
        does, since dividing would raise it). Presence: once for a token of the answer; frequency: for every time that
        it is there (both as in OpenAI's reference).
        """
        if len(self._biased):
            logits = logits.copy()
            logits[self._biased] += self._biases
        if self._change_nothing or not self._times_in_answer:
            return logits
        tokens = np.fromiter(self._times_in_answer, np.intp)
        times = np.fromiter(self._times_in_answer.values(), np.float32)
        seen = logits[tokens]
        seen = np.where(seen > 0, seen / self._repetition, seen * self._repetition)
        seen -= self._presence * (times > 0) + self._frequency * times
        penalised = logits.copy()
        penalised[tokens] = seen
        return penalised


def without(logits: Logits, tokens: Collection[int]) -> Logits:
    """Logits, (vocabulary,), of which those tokens never come."""
    rest = logits.copy()
    rest[[token for token in tokens if token < len(logits)]] = -np.inf
    return rest
