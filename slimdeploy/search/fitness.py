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

from ..losses import TextBatch, answer_loss, divergence, text_batch, text_logits
from ..model import Model
from ..policy import DENSE, Level, Policy
from ..prune import Database
from ..prune.database import as_stored
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
    """The model at whatever policy was asked for last; only layers whose level changed are set anew."""

    def __init__(self, model: Model, database: Database) -> None:
        self.model = model
        self._database = database
        self._levels = {layer.name: DENSE for layer in model.layers()}
        self._replaced: dict[str, Tensor] = {}
        self.log_norm_ratio = cache(self._log_norm_ratio)

    def apply(self, policy: Policy) -> None:
        for name, level in policy.levels.items():
            if level != self._levels[name]:
                self._set(name, level)

    def mask_now(self, name: str) -> Tensor:
        """The mask that a layer wears."""
        return self._database.mask(name, self._levels[name])

    def dense(self, name: str) -> Tensor:
        """A layer's weights without a mask."""
        return self._replaced[name] if name in self._replaced else self._database.dense(name)

    def replace_dense(self, name: str, weight: Tensor) -> None:
        """Give a layer other dense weights; its masks stay those of the weights that it came with."""
        self._replaced[name] = weight.detach().clone()
        self.log_norm_ratio.cache_clear()
        self._set(name, self._levels[name])

    def _set(self, name: str, level: Level) -> None:
        with torch.no_grad():
            self.model.linear(name).weight.copy_(self._pruned(name, level))
        self._levels[name] = level

    def _pruned(self, name: str, level: Level) -> Tensor:
        if name not in self._replaced:
            return self._database.pruned(name, level)
        return as_stored(self._replaced[name] * self._database.mask(name, level), level.values)

    def _log_norm_ratio(self, name: str, level: Level) -> float:
        return log_norm_ratio(self.dense(name), self._database.mask(name, level))


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
