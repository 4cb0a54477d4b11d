"""Pruning block by block, where a block's masks and weights depend on what the pruned blocks before it put out, or on
more than can be kept of all layers at once. Knows no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import PruneConfig
from ..model import Model
from ..policy import DENSE, Level, Policy
from ..progress import Progress
from ..samples import Sample
from .criteria import mask_by_scores
from .database import as_stored
from .finite import finite_weight
from .masks import Masks
from .moments import Moments, unreached
from .sparsegpt import sparsegpt
from .stats import Stats
from .tokens import text_and_drifting
from .walk import Block, Observe, Outputs, Walk, encode_all

Solved = Iterator[tuple[str, Tensor, Tensor]]
"""Names of layers with their pruned weights and their masks, (out, in)."""


@dataclass(frozen=True)
class Pruning:
    """How a policy is put into a model. samples: what blocks are pruned on, `batch_size` of them at a time."""

    config: PruneConfig
    samples: Sequence[Sample]
    batch_size: int
    progress: Progress


def prune_blockwise(model: Model, policy: Policy, how: Pruning) -> Iterator[tuple[str, Masks]]:
    """Bring the model to a policy, block by block and in place. Yields a block's path when it is done, and its masks.

    With `propagate = "pruned"` a block is pruned for the inputs that the pruned blocks before it give, with "dense" for
    those of the dense model. Raises PruneError that names the layer where weights or inputs are not finite.
    """
    walk = Walk(model, encode_all(model, how.samples, how.batch_size))
    for block in how.progress.track(walk, "prune", total=len(walk)):
        with block.resident():
            yield block.path, _prune_block(model, block, policy, how.config, how.progress)


def _prune_block(model: Model, block: Block, policy: Policy, config: PruneConfig, progress: Progress) -> Masks:
    levels = {name: level for name in block.layers() if (level := policy.levels.get(name, DENSE)) != DENSE}
    if not levels:
        block.hand_on(block.run())
        return {}
    if config.criterion == "sparsegpt":
        outputs, solved = _solve(model, block, levels, config, progress)
    else:
        outputs, solved = _select(model, block, levels, config)
    masks: Masks = {}
    for name, weight, mask in solved:
        with torch.no_grad():
            model.linear(name).weight.copy_(weight)
        del weight  # before the next one is made
        if levels[name].sparsity:
            masks[name] = mask
    block.hand_on(outputs if config.propagate == "dense" else block.run())
    return masks


def _observed(block: Block, config: PruneConfig, observe: Observe, tokens: Sequence[Tensor] | None = None) -> Outputs:
    """Outputs of the dense block, if they will be handed on."""
    if config.propagate == "dense":
        return block.run(observe, tokens)
    block.watch(observe, tokens)
    return []


def _solve(
    model: Model, block: Block, levels: Mapping[str, Level], config: PruneConfig, progress: Progress
) -> tuple[Outputs, Solved]:
    """By SparseGPT: other weights make up for those that go."""
    moments = Moments()
    outputs = _observed(block, config, lambda name, inputs: moments.add(name, inputs) if name in levels else None)

    def solved() -> Solved:
        waiting = set(levels)
        for names, known in moments.curvatures(progress):
            for name in names:
                weight = finite_weight(model, name)
                yield name, *sparsegpt(weight, known, levels[name], config.per_row)
            waiting -= set(names)
        if waiting:
            raise unreached(min(waiting))

    return outputs, solved()


def _select(model: Model, block: Block, levels: Mapping[str, Level], config: PruneConfig) -> tuple[Outputs, Solved]:
    """By scores: those that stay are not changed."""
    stats = Stats()
    tokens = text_and_drifting(block.calls, block.run()) if config.criterion == "atv" else None
    outputs = _observed(block, config, stats.add, tokens)

    def solved() -> Solved:
        for name, level in levels.items():
            mask = mask_by_scores(model, name, level, config, stats)
            yield name, as_stored(model.linear(name).weight.detach() * mask, level.values), mask.cpu()

    return outputs, solved()
