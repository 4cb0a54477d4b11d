"""A judge for models that are not in memory: one pass over the streamed blocks scores a whole generation."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..config import PruneConfig
from ..losses import answer_loss, divergence, text_batch, text_logits
from ..model import Model
from ..policy import Level, Policy
from ..prune import RankedWeights, Stats, set_weights
from ..prune.walk import Block, Walk
from ..samples import Sample
from .allocation import blocks_of
from .fitness import Loss, log_norm_ratio

DENSE_MODEL = Policy({})


class StreamedJudge:
    """As `ModelJudge`, with one block in memory: all policies' activations walk on through it before it is dropped.

    group: M of the N:M patterns among the levels, 0 for none. parts: samples that go through the model together.
    """

    version = 0  # of the projector, which has no gradients here

    def __init__(
        self, model: Model, config: PruneConfig, stats: Stats, group: int, parts: Iterable[Sequence[Sample]]
    ) -> None:
        self._model, self._config, self._stats, self._group = model, config, stats, group
        self._norms: dict[tuple[str, Level], float] = {}
        self.batches = [text_batch(model, part) for part in parts]
        self.samples: Sequence[int] = [len(batch.targets) for batch in self.batches]
        self.tokens: Sequence[int] = [int(batch.inputs["attention_mask"].sum()) for batch in self.batches]
        (dense,) = self._logits([DENSE_MODEL], range(len(self.batches)))
        self._dense = [logits.log_softmax(-1) for logits in dense]

    def losses(self, policies: Sequence[Policy], parts: range) -> Iterator[list[Loss]]:
        for of_policy in self._logits(policies, parts):
            yield [self._loss(part, logits) for part, logits in zip(parts, of_policy, strict=True)]

    def _loss(self, part: int, logits: Tensor) -> Loss:
        batch = self.batches[part]
        return Loss(float(divergence(logits, self._dense[part], batch.weight)), float(answer_loss(logits, batch)))

    def norm_term(self, policy: Policy) -> float:
        missing = [
            layer for layer in self._model.layers() if (layer.name, policy.levels[layer.name]) not in self._norms
        ]
        for block, layers in blocks_of(missing).items():
            with self._model.resident(block):
                database = self._database([layer.name for layer in layers])
                for layer in layers:
                    self._note_norm(database, layer.name, policy.levels[layer.name])
        return sum(self._norms[name, level] for name, level in policy.levels.items())

    def release(self) -> None:
        """Every pass leaves it so."""

    def _logits(self, policies: Sequence[Policy], parts: range) -> list[list[Tensor]]:
        """By policy and part, (samples, tail, vocabulary)."""
        walks = [Walk(self._model, [self.batches[part].inputs for part in parts]) for _ in policies]
        for blocks in zip(*walks, strict=True):
            with blocks[0].resident():
                self._walk_on(policies, blocks)
        logits = []
        for walk in walks:
            with walk.replayed(), torch.inference_mode():
                logits.append([text_logits(self._model, self.batches[part]) for part in parts])
        return logits

    def _walk_on(self, policies: Sequence[Policy], blocks: Sequence[Block]) -> None:
        """Send every policy's activations through one block of the model. blocks: it with the inputs of each policy."""
        names = [name for name in blocks[0].layers() if any(name in policy.levels for policy in policies)]
        database = self._database(names)
        for policy, block in zip(policies, blocks, strict=True):
            for name in names:
                self._note_norm(database, name, policy.levels[name])
            set_weights(self._model, {name: database.pruned(name, policy.levels[name]) for name in names})
            block.hand_on(block.run())
        set_weights(self._model, {name: database.dense(name) for name in names})

    def _database(self, names: Sequence[str]) -> RankedWeights:
        return RankedWeights(self._model, self._config, self._stats, self._group, names)

    def _note_norm(self, database: RankedWeights, name: str, level: Level) -> None:
        if (name, level) not in self._norms:
            self._norms[name, level] = log_norm_ratio(database.dense(name), database.mask(name, level))
