"""The step from a policy to a pruned model: all at once from the dense model's statistics, or block by block."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..model import Model
from ..policy import Policy
from .blockwise import Pruning, prune_blockwise
from .database import as_stored
from .masks import Masks, apply_masks, load_masks, load_weights, make_masks, save_masks, save_weights, set_weights
from .stats import Stats


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
        moves = config.criterion == "sparsegpt"
        moved = [name for name, level in policy.levels.items() if level.values or (moves and level.sparsity)]
        return Pruned(masks, {name: model.linear(name).weight.detach() for name in moved})
    masks = make_masks(model, policy, config, stats)
    evolve()
    apply_masks(model, masks)
    for name, level in policy.levels.items():
        set_weights(model, {name: as_stored(model.linear(name).weight.detach(), level.values)})
    return Pruned(masks)
