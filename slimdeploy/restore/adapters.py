"""SparseLoRA: while it trains, a layer computes  x · ((W + s·BA) ⊙ M)ᵀ + b  with s = alpha / rank.

"Rethinking Pruning for Vision-Language Models" (He, Li and Chen 2024). W stays dense in the layer, so that the teacher
costs no second model; a pruning that moved the survivors as well is given beside it, and takes W's place in the
equation. Knows nothing of samples or losses.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import RestoreConfig
from ..model import Model

Adapters = dict[str, "SparseLora"]
"""By the layer's name, in the masks' order."""


class SparseLora(nn.Module):
    """Parametrization of a weight matrix: W becomes (W₀ + s·BA) ⊙ M, or stays W while it teaches.

    mask, start: (out, in). W₀ is `start`, or W where there is none. A: (rank, in), random. B: (out, rank), zero, so
    that training starts at W₀ ⊙ M. Adapters are float32 whatever W is; the sum is rounded to W's type once.
    """

    mask: Tensor
    start: Tensor | None

    def __init__(self, mask: Tensor, start: Tensor | None, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = mask.shape
        self.scale = alpha / rank
        self.teaches = False
        self.register_buffer("mask", mask)
        self.register_buffer("start", start)
        self.A = nn.Parameter(torch.randn(rank, columns, generator=generator).to(mask.device) / math.sqrt(columns))
        self.B = nn.Parameter(torch.zeros(rows, rank, device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        if self.teaches:
            return weight
        before = weight if self.start is None else self.start
        # Forward passes may compute in bfloat16; what is merged in the end is this sum, and no rounded one.
        with torch.autocast(weight.device.type, enabled=False):
            return self.adapted(before.float()).to(weight.dtype)

    def adapted(self, weight: Tensor) -> Tensor:
        return (weight + self.update()).masked_fill(~self.mask, 0)

    def update(self) -> Tensor:
        return self.scale * (self.B @ self.A)


class PlainLora(SparseLora):
    """W₀ ⊙ M + s·BA: the baseline, which learns weights that the mask then takes away when it is merged."""

    def adapted(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.mask, 0) + self.update()


@contextmanager
def adapted(
    model: Model, masks: Mapping[str, Tensor], start: Mapping[str, Tensor], config: RestoreConfig
) -> Iterator[Adapters]:
    """Adapters on all masked layers while the body runs; merged into the weights, beneath the masks, when it ends.

    Where the body raises, nothing is merged: the weights are as they came.
    """
    generator = torch.Generator().manual_seed(config.seed)
    kind = PlainLora if config.method == "lora" else SparseLora
    towers = {layer.name: layer.tower for layer in model.layers()}
    adapters: Adapters = {}
    with model.frozen():
        try:
            for name, mask in masks.items():
                rank = config.vision_rank if towers[name] == "vision" else config.rank
                before = start[name].to(model.device) if name in start else None
                adapter = kind(mask.to(model.device), before, rank, config.alpha, generator)
                parametrize.register_parametrization(model.linear(name), "weight", adapter)
                adapters[name] = adapter
            yield adapters
        except BaseException:
            _remove(model, adapters, merge=False)
            raise
        _remove(model, adapters, merge=True)


def _remove(model: Model, adapters: Adapters, merge: bool) -> None:
    for name, adapter in adapters.items():
        linear = model.linear(name)
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=merge)
        if merge:
            with torch.no_grad():
                linear.weight.masked_fill_(~adapter.mask, 0)


@contextmanager
def teaching(adapters: Adapters, teaches: bool = True) -> Iterator[None]:
    """These layers are dense while the body runs; pruned and adapted where `teaches` is False."""
    before = [adapter.teaches for adapter in adapters.values()]
    for adapter in adapters.values():
        adapter.teaches = teaches
    try:
        yield
    finally:
        for adapter, taught in zip(adapters.values(), before, strict=True):
            adapter.teaches = taught


def adapter_tensors(adapters: Adapters) -> dict[str, Tensor]:
    """A and B of every layer, as "adapter/NAME/A" and "adapter/NAME/B"."""
    return {
        f"adapter/{name}/{part}": parameter
        for name, adapter in adapters.items()
        for part, parameter in adapter.named_parameters()
    }


def set_adapters(adapters: Adapters, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite A and B of these layers with tensors of those names."""
    with torch.no_grad():
        for name, parameter in adapter_tensors(adapters).items():
            parameter.copy_(tensors[name])
