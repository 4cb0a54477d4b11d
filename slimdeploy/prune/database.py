"""What every prunable matrix becomes at every level: a search chooses from it, pruning puts it into the model."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import PruneConfig
from ..model import Model
from ..packed_tensor import ENCODINGS
from ..policy import DENSE, Level, Values
from ..quantize import LARGEST_CODE, from_bf16, quantize
from .criteria import layer_scores
from .finite import finite_weight
from .patterns import mask_at, ranks
from .stats import Stats


class Database(Protocol):
    """Weights (out, in) by the layer's name."""

    def dense(self, name: str) -> Tensor:
        """As the checkpoint has them."""

    def mask(self, name: str, level: Level) -> Tensor:
        """True where a weight is kept."""

    def pruned(self, name: str, level: Level) -> Tensor:
        """Zero outside the mask. Survivors may have moved to make up for the others, or to what is stored of them."""


class RankedWeights:
    """One rank per weight holds the masks of all levels, which are nested; survivors stay as they are."""

    def __init__(
        self, model: Model, config: PruneConfig, stats: Stats, group: int, names: Iterable[str] | None = None
    ) -> None:
        """group: M of the N:M patterns among the levels, 0 for none. names: of the layers; by default of all."""
        self._criterion, self._stats, self._group = config.criterion, stats, group
        # SparseGPT's weights compete over the rows of 128 columns each: nearer to a row than to the matrix.
        self._per_row = config.per_row or config.criterion == "sparsegpt"
        if names is None:
            names = [layer.name for layer in model.layers()]
        self._dense = {name: finite_weight(model, name).clone() for name in names}
        self._ranks: dict[str, Tensor] = {}

    def names(self) -> list[str]:
        """Of the layers in it."""
        return list(self._dense)

    def dense(self, name: str) -> Tensor:
        return self._dense[name]

    def mask(self, name: str, level: Level) -> Tensor:
        # A dense layer has no ranks to compare with where the pattern is in groups, and need not be in the statistics.
        if level.sparsity == DENSE.sparsity:
            return torch.ones_like(self._dense[name], dtype=torch.bool)
        if name not in self._ranks:
            scores = layer_scores(self._dense[name], name, self._criterion, self._stats)
            self._ranks[name] = ranks(scores, self._group, self._per_row)
        return mask_at(self._ranks[name], level, self._per_row)

    def pruned(self, name: str, level: Level) -> Tensor:
        return as_stored(self._dense[name] * self.mask(name, level), level.values)


def as_stored(weight: Tensor, values: Values) -> Tensor:
    """To the integers and scales that an export stores, and back; "" leaves everything as it is. weight: (out, in)."""
    if not values:
        return weight
    group = ENCODINGS[f"packed-{values}"].group
    codes, scales = quantize(weight.float().cpu().numpy(), LARGEST_CODE[values], group)
    by_column = np.repeat(from_bf16(scales), group, axis=1)[:, : weight.shape[1]]
    return torch.from_numpy(codes * by_column).to(weight)
