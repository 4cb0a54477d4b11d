"""How important each weight is. One line of mathematics per criterion; walks over no model."""

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from ..config import Criterion, PruneConfig
from ..errors import PruneError
from ..model import Model
from ..policy import Level
from .finite import finite_weight
from .patterns import mask_of
from .sparsegpt import saliency
from .stats import Stats


def wanda_scores(weight: Tensor, input_sq_sum: Tensor) -> Tensor:
    """|W| · ‖X‖₂ per input feature; the smallest are pruned first (Wanda, Sun et al. 2024, eq. 1).

    weight: (out, in).  input_sq_sum: (in,), sum of squared inputs over calibration tokens.
    Returns (out, in), in the weight's unit times the input's norm.
    """
    # float32, as the norms are: in bfloat16 many scores of a row would be equal.
    return weight.abs() * input_sq_sum.sqrt().to(weight.device, torch.float32)


def magnitude_scores(weight: Tensor) -> Tensor:
    """|W|, whatever the inputs. weight and result: (out, in)."""
    return weight.abs()


def layer_scores(weight: Tensor, name: str, criterion: Criterion, stats: Stats) -> Tensor:
    """Scores of one layer's weights. weight and result: (out, in). Raises PruneError where statistics are missing."""
    match criterion:
        case "magnitude":
            return magnitude_scores(weight)
        case "wanda" | "atv":
            return wanda_scores(weight, _of(stats.input_sq_sum, name))
        case "sparsegpt":
            return saliency(weight, _of(stats.factor_diagonal, name).to(weight.device))
        case _:
            assert_never(criterion)


def mask_by_scores(model: Model, name: str, level: Level, config: PruneConfig, stats: Stats) -> Tensor:
    """The weights of a layer that are kept at a level, (out, in). Raises PruneError for NaN or missing statistics."""
    # Scores are twice a bfloat16 matrix; without a name they are gone when the mask is made.
    return mask_of(layer_scores(finite_weight(model, name), name, config.criterion, stats), level, config.per_row)


def _of(statistics: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in statistics:
        raise PruneError(
            f"the statistics hold nothing on {name}: no calibration sample reaches it, so name it in prune.skip or "
            "give other samples; or they are of another model or criterion, so collect them again"
        )
    return statistics[name]
