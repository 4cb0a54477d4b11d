"""How adapters take a step, whatever the loss."""

import math

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..config import RestoreConfig
from ..errors import PruneError
from .adapters import Adapters

_WARM_UP = 0.1
_FINAL_RATE = 0.1
_LARGEST_GRADIENT_NORM = 1.0


def optimizer_of(adapters: Adapters) -> Optimizer:
    parameters = [parameter for adapter in adapters.values() for parameter in adapter.parameters()]
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0)


def take_step(optimizer: Optimizer, loss: Tensor, learning_rate: float) -> float:
    """One step down; returns the loss. Raises PruneError where it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise PruneError(f"the loss of restoration is {value}; lower restore.learning_rate")
    (group,) = optimizer.param_groups
    group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    clip_grad_norm_(group["params"], _LARGEST_GRADIENT_NORM)
    optimizer.step()
    return value


def learning_rate(config: RestoreConfig, step: int, steps: int) -> float:
    """Of the given step: linear warm-up to the peak, then half a cosine down to a tenth of it."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return config.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
