"""The next token from the logits: the likeliest, or one that is drawn.

What may be drawn is cut by thresholds, so that equal logits stay or go together and nothing depends on the order in
which a machine sorts them. No vocabulary is sorted whole where its likeliest tokens will do.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .engine import Sampling
from .penalties import Logits, Penalties

Weights = NDArray[np.float64]
_ROWS = 64


class Sampler:
    """Chooses the tokens of one answer; equal seeds and logits give equal tokens.

    prompt_ids: those that the repetition penalty counts.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        self._sampling = sampling
        self._penalties = Penalties(sampling, prompt_ids)
        # numpy takes no negative seed, OpenAI's clients may send one.
        self._rng = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def __call__(self, logits: Logits) -> int:
        """logits: (vocabulary,), as the model gave them."""
        logits = self._penalties(logits)
        token = int(logits.argmax()) if self._sampling.temperature == 0 else self._draw(logits)
        self._penalties.count(token)
        return token

    def _draw(self, logits: Logits) -> int:
        tokens, weights = candidates(logits, self._sampling)
        cumulative = np.cumsum(weights, out=weights)
        return int(tokens[cumulative.searchsorted(self._rng.random() * cumulative[-1], side="right")])


def candidates(logits: Logits, sampling: Sampling) -> tuple[Sequence[int] | NDArray[np.intp], Weights]:
    """The tokens that may come next, by their ids, and weights in proportion to their probabilities."""
    least = _least_logit(logits, sampling)
    if least == -math.inf:
        return range(len(logits)), _weights(logits, sampling.temperature)
    tokens = np.flatnonzero(logits >= least)
    return tokens, _weights(logits[tokens], sampling.temperature)


def _least_logit(logits: Logits, sampling: Sampling) -> float:
    """Of the tokens that may be drawn.

    min_p: at least this share of the likeliest token's probability (Nguyen et al. 2024). top_k: the k likeliest (Fan
    et al. 2018). top_p: of what these leave, the nucleus (Holtzman et al. 2020).
    """
    least = -math.inf
    if sampling.min_p > 0:
        least = float(logits.max()) + sampling.temperature * math.log(sampling.min_p)
    if 0 < sampling.top_k < len(logits):
        least = max(least, kth_largest(logits, sampling.top_k))
    if sampling.top_p < 1:
        least = max(least, _least_of_nucleus(logits[logits >= least], sampling))
    return least


def kth_largest(logits: Logits, k: int) -> float:
    """1 <= k <= len(logits)."""
    maxima = logits[: len(logits) // _ROWS * _ROWS].reshape(_ROWS, -1).max(axis=0)
    if k <= len(maxima):
        # As many logits as columns are no less than the k-th largest of the columns' maxima: only those are looked at.
        logits = logits[logits >= np.partition(maxima, -k)[-k]]
    return float(np.partition(logits, -k)[-k])


def _least_of_nucleus(logits: Logits, sampling: Sampling) -> float:
    """The least logit in the smallest set of largest ones that has a share of `top_p` of the probability."""
    weights = _weights(logits, sampling.temperature)
    total = weights.sum()
    # Below this all together hold less than 1 - top_p, so that the others have the nucleus; half leaves room to round.
    bound = (1 - sampling.top_p) * total / len(weights) / 2
    large = np.sort(logits[weights >= bound])[::-1]
    size = _weights(large, sampling.temperature).cumsum().searchsorted(sampling.top_p * total) + 1
    return float(large[min(size, len(large)) - 1])


def _weights(logits: Logits, temperature: float) -> Weights:
    """In proportion to softmax(logits / temperature); the largest is 1.

    In place: at 256,000 tokens fetching memory for every step takes longer than the steps.
    """
    weights = logits.astype(np.float64)
    # Shifted before it is divided: a tiny temperature must not make infinity minus infinity.
    weights -= logits.max()
    weights /= temperature
    return np.exp(weights, out=weights)
