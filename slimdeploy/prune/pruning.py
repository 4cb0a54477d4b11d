"""The step from a policy to a pruned model: all at once from the dense model's statistics, or block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..config import PruneConfig
from ..model import Model
from ..policy import Policy
from ..streaming import StoredWeights, write_blocks
from .blockwise import Pruning, prune_blockwise
from .database import as_stored
from .masks import Masks, apply_masks, load_masks, load_weights, make_masks, save_masks, save_weights, set_weights
from .stats import Stats

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Pruned:
    """masks: of the layers that lost weights. weights: (out, in) of those whose other weights pruning moved."""

    masks: Masks
    weights: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        save_masks(self.masks, folder)
        save_weights(self.weights, folder)

    @staticmethod
    def load(folder: Path) -> "Pruned":
        return Pruned(load_masks(folder), load_weights(folder))

    @staticmethod
    def load_streamed(folder: Path, policy: Policy, config: PruneConfig, model: Model) -> "Pruned":
        """As `load`, where the model stayed on disk: `folder` holds masks by block, and all weights."""
        names = {f"{name}.weight": name for name in _moved(policy, config)}
        stored = StoredWeights.of(folder / CHECKPOINT, model.arch).read(names)
        weights = {names[key]: weight for key, weight in stored}
        return Pruned(load_masks(folder), dict(sorted(weights.items())))  # in the order that one file has


def prune_streamed(model: Model, policy: Policy, how: Pruning, folder: Path) -> None:
    """Bring a streamed model to the policy, block by block, into `folder`: a checkpoint, and each block's masks."""

    def done() -> Iterator[str]:
        for path, masks in prune_blockwise(model, policy, how):
            if masks:
                save_masks(masks, folder, part=next(iter(masks)))  # paths of what is no block are all empty
            del masks  # before the next block is pruned
            yield path

    write_blocks(model, done(), folder / CHECKPOINT)


def _moved(policy: Policy, config: PruneConfig) -> list[str]:
    """Layers of which restoration starts from the weights that pruning has made."""
    moves = config.criterion == "sparsegpt"
    levels = policy.levels.items() if config.is_blockwise else ()
    return [name for name, level in levels if level.values or (moves and level.sparsity)]


def prune(
    model: Model,
    policy: Policy,
    stats: Stats,
    how: Pruning,
    evolve: Callable[[], None] = lambda: None,
) -> Pruned:
    """Bring the model to the policy, in place, with survivors as the policy stores them.

    Block by block where statistics do not say enough. evolve: puts the evolved projector into the dense model. Its
    masks are the checkpoint's, as the search judged them; block by block they are chosen anew.
    """
    config = how.config
    if config.is_blockwise:
        evolve()
        blocks = prune_blockwise(model, policy, how)
        masks = {name: mask for _, block in blocks for name, mask in block.items()}
        return Pruned(masks, {name: model.linear(name).weight.detach() for name in _moved(policy, config)})
    masks = make_masks(model, policy, config, stats)
    evolve()
    apply_masks(model, masks)
    for name, level in policy.levels.items():
        set_weights(model, {name: as_stored(model.linear(name).weight.detach(), level.values)})
    return Pruned(masks)
