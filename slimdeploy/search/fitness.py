"""What a policy is worth on a few samples: structural risk minimisation, after SlimLLaVA (CVPR 2025, arXiv 2503.15369).

J(policy) = proxy loss + eta · Σ_l log(‖M_l ⊙ W_l‖_F / ‖W_l‖_F)

The proxy loss is the divergence from the dense model on question and answer tokens plus the cross-entropy of the
answers, where they are known. Knows no search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..config import Criterion
from ..losses import TextBatch, answer_loss, divergence, text_batch, text_logits
from ..model import Model
from ..policy import DENSE, Level, Policy
from ..prune import Stats
from ..prune.criteria import layer_scores
from ..prune.patterns import mask_at, ranks
from ..samples import Sample


def proxy_loss(model: Model, batch: TextBatch, dense: Tensor) -> Tensor:
    """dense: (samples, tail, vocabulary), the dense model's log-probabilities."""
    logits = text_logits(model, batch)
    return divergence(logits, dense, batch.weight) + answer_loss(logits, batch)


def log_norm_ratio(weight: Tensor, mask: Tensor) -> float:
    """log(‖M ⊙ W‖_F / ‖W‖_F); 0 for a dense layer, and for one that is all zeros."""
    total, kept = float(weight.norm()), float((weight * mask).norm())
    return math.log(kept / total) if total and kept else 0.0


class PrunedModel:
    """The model at whatever policy was asked for last; only layers whose level changed are masked anew.

    Masks are nested over levels, so one rank per weight is the database of all of them.
    """

    def __init__(self, model: Model, criterion: Criterion, stats: Stats, group: int) -> None:
        self.model = model
        self._dense = {layer.name: model.linear(layer.name).weight.detach().clone() for layer in model.layers()}
        self._ranks = {name: ranks(layer_scores(model, name, criterion, stats), group) for name in self._dense}
        self._levels = dict.fromkeys(self._dense, DENSE)
        self.log_norm_ratio = cache(self._log_norm_ratio)

    def apply(self, policy: Policy) -> None:
        for name, level in policy.levels.items():
            if level != self._levels[name]:
                self._set(name, level)

    def mask_now(self, name: str) -> Tensor:
        """The mask that a layer wears."""
        return self._mask(name, self._levels[name])

    def dense(self, name: str) -> Tensor:
        """A layer's weights without a mask."""
        return self._dense[name]

    def replace_dense(self, name: str, weight: Tensor) -> None:
        """Give a layer other dense weights; its masks stay those of the weights that it came with."""
        self._dense[name] = weight.detach().clone()
        self.log_norm_ratio.cache_clear()
        self._set(name, self._levels[name])

    def _mask(self, name: str, level: Level) -> Tensor:
        # A dense layer has no ranks to compare with where the pattern is in groups.
        return mask_at(self._ranks[name], level) if level != DENSE else torch.ones_like(self._ranks[name]).bool()

    def _set(self, name: str, level: Level) -> None:
        with torch.no_grad():
            self.model.linear(name).weight.copy_(self._dense[name] * self._mask(name, level))
        self._levels[name] = level

    def _log_norm_ratio(self, name: str, level: Level) -> float:
        return log_norm_ratio(self._dense[name], self._mask(name, level))


@dataclass(frozen=True)
class Judged:
    """Samples with the dense model's view of them."""

    batch: TextBatch
    dense: Tensor


@dataclass(frozen=True)
class Judge:
    """J on a set of samples. Made while the model is dense."""

    pruned: PrunedModel
    parts: tuple[Judged, ...]
    eta: float

    @staticmethod
    def on(pruned: PrunedModel, samples: Sequence[Sample], eta: float, batch_size: int) -> "Judge":
        parts = []
        for start in range(0, len(samples), batch_size):
            batch = text_batch(pruned.model, samples[start : start + batch_size])
            with torch.inference_mode():
                parts.append(Judged(batch, text_logits(pruned.model, batch).log_softmax(-1)))
        return Judge(pruned, tuple(parts), eta)

    def __call__(self, policy: Policy) -> float:
        self.pruned.apply(policy)
        with torch.inference_mode():
            losses = [float(proxy_loss(self.pruned.model, part.batch, part.dense)) for part in self.parts]
        return sum(losses) / len(losses) + self.eta * self.norm_term(policy)

    def norm_term(self, policy: Policy) -> float:
        """Σ_l log(‖M_l ⊙ W_l‖_F / ‖W_l‖_F)."""
        return sum(self.pruned.log_norm_ratio(name, level) for name, level in policy.levels.items())
