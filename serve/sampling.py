"""The next token from the logits: greedy, or drawn from the nucleus."""

import numpy as np
from numpy.typing import NDArray

from .engine import Sampling

Logits = NDArray[np.float32]


class Sampler:
    """Draws the tokens of one answer; equal seeds and logits give equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        # numpy takes no negative seed, OpenAI's clients may send one.
        self._rng = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def __call__(self, logits: Logits) -> int:
        """logits: (vocabulary,)."""
        if self._temperature == 0:
            return int(logits.argmax())
        return _draw(probabilities(logits, self._temperature), self._top_p, self._rng.random())


def probabilities(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature): (vocabulary,)."""
    # Shifted before it is divided: a tiny temperature must not make infinity minus infinity.
    shifted = (logits.astype(np.float64) - logits.max()) / temperature
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum())


def _draw(probability: NDArray[np.float64], top_p: float, position: float) -> int:
    """The token at `position`, 0 to 1, of the smallest set of likeliest tokens that holds a share of `top_p`.

    Nucleus sampling, Holtzman et al. 2020. The likeliest token is always in the set.
    """
    order = np.argsort(-probability, kind="stable")
    cumulative = np.cumsum(probability[order])
    size = min(int(np.searchsorted(cumulative, top_p)) + 1, len(order))
    chosen = np.searchsorted(cumulative[:size], position * cumulative[size - 1], side="right")
    return int(order[min(int(chosen), size - 1)])
