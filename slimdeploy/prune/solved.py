"""What SparseGPT makes of every prunable matrix at every level, for the inputs that the dense model gives."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import PruneConfig
from ..model import Model
from ..policy import DENSE, Level
from ..progress import Progress
from ..samples import Sample
from .finite import finite_weight
from .moments import Moments, unreached
from .sparsegpt import Curvature, sparsegpt
from .walk import Walk, encode_all


class SolvedWeights:
    """A database whose matrices are solved when they are first asked for, and kept.

    With them a search judges what SparseGPT will ship, as EvoPress does (Sieberling et al. 2024); a mask alone says
    little of weights that make up for others. They take memory: see `solved_bytes`.
    """

    def __init__(self, model: Model, config: PruneConfig, curvatures: Mapping[str, Curvature]) -> None:
        """curvatures: by layer, as `dense_curvatures` gives them. The model is dense."""
        self._per_row = config.per_row
        self._curvatures = curvatures
        self._dense = {layer.name: finite_weight(model, layer.name).clone() for layer in model.layers()}
        self._solved: dict[tuple[str, Level], tuple[Tensor, Tensor]] = {}

    def dense(self, name: str) -> Tensor:
        return self._dense[name]

    def mask(self, name: str, level: Level) -> Tensor:
        return self._at(name, level)[1]

    def pruned(self, name: str, level: Level) -> Tensor:
        return self._at(name, level)[0]

    def _at(self, name: str, level: Level) -> tuple[Tensor, Tensor]:
        weight = self._dense[name]
        if level.sparsity == DENSE.sparsity and not level.values:
            return weight, torch.ones_like(weight, dtype=torch.bool)
        if name not in self._curvatures:
            raise unreached(name)
        if (name, level) not in self._solved:
            solved, mask = sparsegpt(weight, self._curvatures[name], level, self._per_row)
            self._solved[name, level] = solved.to(weight.dtype).contiguous(), mask.contiguous()
        return self._solved[name, level]


def solved_bytes(model: Model, levels: int) -> int:
    """About what all matrices take at so many levels: weights, masks, and the factors to make them with."""
    each = sum(layer.weights * (model.linear(layer.name).weight.element_size() + 1) for layer in model.layers())
    return levels * each + sum(4 * layer.columns**2 for layer in model.layers())


def dense_curvatures(
    model: Model, samples: Sequence[Sample], batch_size: int, progress: Progress
) -> dict[str, Curvature]:
    """Of the inputs of every prunable layer over the samples; layers with the same inputs share theirs.

    Raises PruneError that names the layer where inputs are not finite, or cannot be inverted whatever the damping.
    """
    found: dict[str, Curvature] = {}
    walk = Walk(model, encode_all(model, samples, batch_size))
    for block in progress.track(walk, "second moments of inputs", total=len(walk)):
        moments = Moments()
        block.hand_on(block.run(moments.add))
        for names, known in moments.curvatures(progress):
            found |= dict.fromkeys(names, known)
    return found
