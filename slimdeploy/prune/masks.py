"""Masks over a model's weight matrices: made from a policy, put on, taken off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model import Model
from ..policy import Policy
from .database import Database

_MASKS = "masks.safetensors"
_WEIGHTS = "weights.safetensors"

Masks = dict[str, Tensor]
"""Boolean (out, in) per layer, True = kept. Layers that stay dense have none."""


def make_masks(database: Database, policy: Policy) -> Masks:
    """The masks of a policy."""
    return {name: database.mask(name, level) for name, level in policy.levels.items() if level.sparsity}


def apply_masks(model: Model, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set everything outside the masks to zero. Returns the dense weights, by name, for `set_weights`."""
    dense = {name: model.linear(name).weight.detach().clone() for name in masks}
    set_weights(model, {name: weight * masks[name].to(weight.device) for name, weight in dense.items()})
    return dense


def set_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Overwrite weight matrices in place."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.linear(name).weight.copy_(weight)


@contextmanager
def masked(model: Model, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """The pruned model while the body runs, the dense one afterwards."""
    dense = apply_masks(model, masks)
    try:
        yield
    finally:
        set_weights(model, dense)


def save_masks(masks: Mapping[str, Tensor], folder: Path) -> None:
    save_file({name: mask.contiguous() for name, mask in masks.items()}, folder / _MASKS)


def load_masks(folder: Path) -> Masks:
    return dict(load_file(folder / _MASKS))


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Weight matrices that pruning has changed, beyond what masks tell."""
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)


def load_weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / _WEIGHTS))
