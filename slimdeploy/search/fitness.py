"""What a policy is worth on a few samples: structural risk minimisation, after SlimLLaVA (CVPR 2025, arXiv 2503.15369).

J(policy) = proxy loss + eta · Σ_l log(‖M_l ⊙ W_l‖_F / ‖W_l‖_F)

The proxy loss is the divergence from the dense model on question and answer tokens plus the cross-entropy of the
answers, where they are known. Knows no search.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..losses import answer_loss, divergence, taught, text_batch, text_logits
from ..model import Model
from ..policy import DENSE, Level, Policy
from ..prune import Database
from ..prune.database import as_stored
from ..samples import Sample


def log_norm_ratio(weight: Tensor, mask: Tensor) -> float:
    """log(‖M ⊙ W‖_F / ‖W‖_F): 0 for a dense layer, the lower the less a mask keeps, -infinity where it keeps nothing.

    0 as well for a layer that is all zeros, of which no mask takes anything. Lower counts as better in J, so that the
    limit would win every comparison: no level that a search may take keeps nothing, and `Verdicts` takes an infinite J
    for the worst.
    """
    weight = weight.float()  # a sum of many squares in bfloat16 has an error of its own at every level
    total, kept = float(weight.norm()), float((weight * mask).norm())
    if not total:
        return 0.0
    return math.log(kept / total) if kept else -math.inf


class PrunedModel:
    """The model at whatever policy was asked for last; only layers whose level changed are set anew.

    version: of the weights beneath the masks, for whoever replaces them.
    """

    def __init__(self, model: Model, database: Database) -> None:
        self.model = model
        self.version = 0
        self._database = database
        self._levels = {layer.name: DENSE for layer in model.layers()}
        self._replaced: dict[str, Tensor] = {}
        self.log_norm_ratio = cache(self._log_norm_ratio)

    def apply(self, policy: Policy) -> None:
        for name, level in policy.levels.items():
            if level != self._levels[name]:
                self._set(name, level)

    def put_back(self) -> None:
        """All layers dense, also where something stopped between a weight and the note of its level."""
        for name in self._levels:
            self._set(name, DENSE)

    def mask_now(self, name: str) -> Tensor:
        """The mask that a layer wears."""
        return self._mask(name, self._levels[name])

    def dense(self, name: str) -> Tensor:
        """A layer's weights without a mask."""
        return self._replaced[name] if name in self._replaced else self._database.dense(name)

    def replace_dense(self, name: str, weight: Tensor) -> None:
        """Give a layer other dense weights; its masks stay those of the weights that it came with."""
        if torch.equal(weight, self._database.dense(name).to(weight)):
            self._replaced.pop(name, None)
        else:
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
        # What other weights make up for those that went is taken over as it is, and rounded with the rest.
        moved = (self._replaced[name] - self._database.dense(name)) * self._mask(name, level)
        return as_stored(self._database.pruned(name, replace(level, values="")) + moved, level.values)

    def _mask(self, name: str, level: Level) -> Tensor:
        """Where rounding has a say in what goes, replaced weights wear the mask of those that are not rounded."""
        return self._database.mask(name, replace(level, values="") if name in self._replaced else level)

    def _log_norm_ratio(self, name: str, level: Level) -> float:
        return log_norm_ratio(self.dense(name), self._mask(name, level))


@dataclass(frozen=True)
class Loss:
    """What a policy costs on some samples, in nats: divergence from the dense model, cross-entropy of the answers."""

    divergence: float
    answers: float


class Judge(Protocol):
    """Says what policies cost on parts of a set of samples. Remembers nothing.

    samples, tokens: of each part. version: of what the verdict depends on beside the policy, which is the projector.
    """

    samples: Sequence[int]
    tokens: Sequence[int]

    @property
    def version(self) -> int: ...

    def losses(self, policies: Sequence[Policy], parts: range) -> Iterator[list[Loss]]:
        """One loss for each of the parts, policy by policy."""

    def norm_term(self, policy: Policy) -> float:
        """Σ_l log(‖M_l ⊙ W_l‖_F / ‖W_l‖_F)."""

    def release(self) -> None:
        """Leave the model dense."""


class ModelJudge:
    """A judge with the whole model in memory. Made while the model is dense.

    parts: samples that go through the model together.
    """

    def __init__(self, pruned: PrunedModel, parts: Iterable[Sequence[Sample]]) -> None:
        self.pruned = pruned
        self.batches = [text_batch(pruned.model, part) for part in parts]
        self.samples: Sequence[int] = [len(batch.targets) for batch in self.batches]
        self.tokens: Sequence[int] = [int(batch.inputs["attention_mask"].sum()) for batch in self.batches]
        with torch.inference_mode():
            self._dense = [taught(text_logits(pruned.model, batch)) for batch in self.batches]

    @property
    def version(self) -> int:
        return self.pruned.version

    def losses(self, policies: Sequence[Policy], parts: range) -> Iterator[list[Loss]]:
        for policy in policies:
            self.pruned.apply(policy)
            with torch.inference_mode():
                terms = [self._terms(part) for part in parts]
            yield [Loss(float(divergence), float(answers)) for divergence, answers in terms]

    def proxy_loss(self, part: int) -> Tensor:
        """Of the model as it is, for gradients."""
        divergence, answers = self._terms(part)
        return divergence + answers

    def _terms(self, part: int) -> tuple[Tensor, Tensor]:
        batch = self.batches[part]
        logits = text_logits(self.pruned.model, batch)
        return divergence(logits, self._dense[part], batch.weight), answer_loss(logits, batch)

    def norm_term(self, policy: Policy) -> float:
        return sum(self.pruned.log_norm_ratio(name, level) for name, level in policy.levels.items())

    def release(self) -> None:
        self.pruned.put_back()
