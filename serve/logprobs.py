"""How likely a token was, and what else was likely in its place."""

import math

import numpy as np

from .engine import TokenLogprob
from .penalties import Logits
from .sampling import kth_largest
from .text import Text


def token_logprob(logits: Logits, token: int, alternatives: int, text: Text) -> TokenLogprob:
    """`token` and as many alternatives, by log softmax of the logits: (vocabulary,)."""
    likeliest = logits.max()
    log_sum = float(likeliest) + math.log(np.exp(logits - likeliest).sum(dtype=np.float64))

    def told(token: int, alternatives: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(*text.token(token), float(logits[token]) - log_sum, alternatives)

    return told(token, tuple(map(told, _likeliest(logits, alternatives))))


def _likeliest(logits: Logits, count: int) -> list[int]:
    """In order; of equal ones the first."""
    if count == 0:
        return []
    tokens = np.flatnonzero(logits >= kth_largest(logits, min(count, len(logits))))
    order = np.argsort(-logits[tokens], kind="stable")[:count]
    return [int(token) for token in tokens[order]]
