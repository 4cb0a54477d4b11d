"""A judge for models that are not in memory: one pass over the streamed blocks scores a whole generation."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..config import PruneConfig
from ..losses import answer_loss, divergence, taught, text_batch, text_logits
from ..model import Model
from ..policy import DENSE, Level, Policy
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
        self._in_tuple: dict[str, bool] = {}
        self._included = self._database([name for name, _, _ in model.included()])
        self.batches = [text_batch(model, part) for part in parts]
        self.samples: Sequence[int] = [len(batch.targets) for batch in self.batches]
        self.tokens: Sequence[int] = [int(batch.inputs["attention_mask"].sum()) for batch in self.batches]
        everything = range(len(self.batches))
        self._dense = [
            taught(self._logits(part)) for _ in self._walked([DENSE_MODEL], everything) for part in everything
        ]

    def losses(self, policies: Sequence[Policy], parts: range) -> Iterator[list[Loss]]:
        for _ in self._walked(policies, parts):
            yield [self._loss(part, self._logits(part)) for part in parts]

    def _loss(self, part: int, logits: Tensor) -> Loss:
        batch = self.batches[part]
        return Loss(float(divergence(logits, self._dense[part], batch.weight)), float(answer_loss(logits, batch)))

    def _logits(self, part: int) -> Tensor:
        with torch.inference_mode():
            return text_logits(self._model, self.batches[part])

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

    def _walked(self, policies: Sequence[Policy], parts: range) -> Iterator[Policy]:
        """One pass over the blocks; then, policy by policy, the model gives the logits of that one for these parts."""
        inputs = [self.batches[part].inputs for part in parts]
        walks = [Walk(self._model, inputs, with_included=False, in_tuple=self._in_tuple) for _ in policies]
        iterators = [iter(walk) for walk in walks]
        for _ in range(len(walks[0])):
            blocks = []
            for policy, iterator in zip(policies, iterators, strict=True):
                with self._wearing(self._included, policy):
                    blocks.append(next(iterator))
            with blocks[0].resident():
                self._walk_on(policies, blocks)
        for iterator in iterators:
            next(iterator, None)  # the last block's outputs are noted
        for policy, walk in zip(policies, walks, strict=True):
            with self._wearing(self._included, policy), walk.replayed():
                yield policy

    def _walk_on(self, policies: Sequence[Policy], blocks: Sequence[Block]) -> None:
        """Send every policy's activations through one block of the model. blocks: it with the inputs of each policy."""
        database = self._database(
            [name for name in blocks[0].layers() if any(name in policy.levels for policy in policies)]
        )
        for policy, block in zip(policies, blocks, strict=True):
            with self._wearing(database, policy):
                block.hand_on(block.run())

    @contextmanager
    def _wearing(self, database: RankedWeights, policy: Policy) -> Iterator[None]:
        """The layers of a database at the policy's levels while the body runs, dense afterwards."""
        levels = {name: policy.levels.get(name, DENSE) for name in database.names()}
        for name, level in levels.items():
            self._note_norm(database, name, level)
        try:
            set_weights(self._model, {name: database.pruned(name, level) for name, level in levels.items()})
            yield
        finally:
            set_weights(self._model, {name: database.dense(name) for name in levels})

    def _database(self, names: Sequence[str]) -> RankedWeights:
        return RankedWeights(self._model, self._config, self._stats, self._group, names)

    def _note_norm(self, database: RankedWeights, name: str, level: Level) -> None:
        if (name, level) not in self._norms:
            self._norms[name, level] = log_norm_ratio(database.dense(name), database.mask(name, level))
