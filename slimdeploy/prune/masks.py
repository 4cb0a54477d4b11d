"""Masks over a model's weight matrices: made from a policy, put on, kept in files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import PruneConfig
from ..model import Model
from ..policy import Policy
from .criteria import mask_by_scores
from .stats import Stats

_MASKS = "masks{part}.safetensors"
_WEIGHTS = "weights.safetensors"

Masks = dict[str, Tensor]
"""Boolean (out, in) per layer, True = kept. Layers that stay dense have none."""


def make_masks(model: Model, policy: Policy, config: PruneConfig, stats: Stats) -> Masks:
    """The masks of a policy, by the scores of the weights that the model has."""
    sparse = {name: level for name, level in policy.levels.items() if level.sparsity}
    return {name: mask_by_scores(model, name, level, config, stats) for name, level in sparse.items()}


def apply_masks(model: Model, masks: Mapping[str, Tensor]) -> None:
    """Set everything outside the masks to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.linear(name).weight
            weight.mul_(mask.to(weight.device))


def set_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Overwrite weight matrices in place."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.linear(name).weight.copy_(weight)


def save_masks(masks: Mapping[str, Tensor], folder: Path, part: str = "") -> None:
    """part: names a part of the model, whose masks are a file of their own."""
    file = folder / _MASKS.format(part=part and f".{part}")
    save_file({name: mask.contiguous() for name, mask in masks.items()}, file)


def load_masks(folder: Path) -> Masks:
    """Those of all parts, by name: adapters draw their starts in this order."""
    parts = [load_file(file) for file in folder.glob(_MASKS.format(part="*"))]
    return dict(sorted((name, mask) for masks in parts for name, mask in masks.items()))


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Weight matrices that pruning has changed, beyond what masks tell."""
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)


def load_weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / _WEIGHTS))
