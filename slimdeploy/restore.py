"""SparseLoRA: low-rank adapters under the mask win back what pruning lost; merging them keeps every zero.

While it trains, a layer computes  x · ((W + s·BA) ⊙ M)ᵀ + b  with s = alpha / rank  ("Rethinking Pruning for
Vision-Language Models", He and Chen 2024). W stays dense, so that the teacher is the same module with masks and
adapters left out: the dense model, with the evolved projector where the search brought one. Knows nothing of policies:
the masks say it all.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize

from .config import RestoreConfig
from .errors import PruneError
from .losses import answer_loss, divergence, text_batch, text_logits
from .model import Model
from .progress import Progress
from .prune import Masks, apply_masks
from .samples import Sample

_WARM_UP = 0.1
_FINAL_RATE = 0.1
_LARGEST_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class RestoreReport:
    """What restoration did.

    losses: of every step. answered: share of the samples that have an answer; the others teach by the dense model's
    predictions alone. kept: weights inside the masks.
    """

    losses: tuple[float, ...]
    answered: float
    kept: int


class SparseLora(nn.Module):
    """Parametrization of a weight matrix: W becomes (W + s·BA) ⊙ M, or stays W while it teaches.

    mask: (out, in). A: (rank, in), random. B: (out, rank), zero, so that training starts at W ⊙ M.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = mask.shape
        self.scale = alpha / rank
        self.teaches = False
        self.register_buffer("mask", mask)
        self.A = nn.Parameter(torch.randn(rank, columns, generator=generator).to(mask.device) / math.sqrt(columns))
        self.B = nn.Parameter(torch.zeros(rows, rank, device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.teaches else self.adapted(weight)

    def adapted(self, weight: Tensor) -> Tensor:
        return (weight + self.update(weight)).masked_fill(~self.mask, 0)

    def update(self, weight: Tensor) -> Tensor:
        return (self.scale * (self.B @ self.A)).to(weight.dtype)


class PlainLora(SparseLora):
    """W ⊙ M + s·BA: the baseline, which learns weights that the mask then takes away when it is merged."""

    def adapted(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.mask, 0) + self.update(weight)


ADAPTERS: Final[dict[str, type[SparseLora]]] = {"sparse_lora": SparseLora, "lora": PlainLora}


def restore(
    model: Model, masks: Masks, samples: Sequence[Sample], config: RestoreConfig, progress: Progress
) -> RestoreReport:
    """Train adapters under the masks and merge them, in place; afterwards every weight outside the masks is zero.

    The model comes dense. Layers without a mask stay as they are, and so does everything that is no weight matrix.
    Raises PruneError where there is nothing to learn from.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    if config.method == "none":
        apply_masks(model, masks)
        return RestoreReport((), 0.0, kept)
    if not samples:
        raise PruneError("restoration has no samples; give a train split, or set restore.method = 'none'")
    answered = sum(bool(sample.answers) for sample in samples) / len(samples)
    if answered < 1:
        progress.say(f"{1 - answered:.0%} of the training samples have no answer: the dense model's predictions teach")
    with _adapted(model, masks, config) as adapters:
        losses = _train(model, adapters, samples, config, progress)
    assert all(not bool(model.linear(name).weight[~mask].any()) for name, mask in masks.items())
    return RestoreReport(tuple(losses), answered, kept)


@contextmanager
def _adapted(model: Model, masks: Mapping[str, Tensor], config: RestoreConfig) -> Iterator[list[SparseLora]]:
    """Adapters on all masked layers while the body runs; merged into the weights, beneath the masks, when it ends."""
    generator = torch.Generator().manual_seed(config.seed)
    towers = {layer.name: layer.tower for layer in model.layers()}
    trainable = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    adapters = []
    for name, mask in masks.items():
        rank = config.vision_rank if towers[name] == "vision" else config.rank
        adapters.append(ADAPTERS[config.method](mask.to(model.device), rank, config.alpha, generator))
        parametrize.register_parametrization(model.linear(name), "weight", adapters[-1])
    try:
        yield adapters
    finally:
        for name, adapter in zip(masks, adapters, strict=True):
            parametrize.remove_parametrizations(model.linear(name), "weight", leave_parametrized=True)
            with torch.no_grad():
                model.linear(name).weight.masked_fill_(~adapter.mask, 0)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _train(
    model: Model, adapters: list[SparseLora], samples: Sequence[Sample], config: RestoreConfig, progress: Progress
) -> list[float]:
    """Loss per step: (1 - λ) · cross-entropy of the answers + λ · divergence from the dense model."""
    parameters = [parameter for adapter in adapters for parameter in adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    batches = _shuffled_batches(samples, config.batch_size, random.Random(config.seed))
    bar = progress.bar("restore", total=config.steps)
    losses = []
    for _ in range(config.steps):
        loss = _loss(model, adapters, next(batches), config.distillation)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(parameters, _LARGEST_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise PruneError(f"the loss of restoration is {losses[-1]}; lower restore.learning_rate")
        bar.advance(f"loss {losses[-1]:.3f}")
    return losses


def _loss(model: Model, adapters: list[SparseLora], samples: Sequence[Sample], distillation: float) -> Tensor:
    batch = text_batch(model, samples)
    # A batch without a single answer has only the dense model to learn from.
    share = distillation if bool(batch.is_answer.any()) else 1.0
    logits = text_logits(model, batch)
    loss = (1 - share) * answer_loss(logits, batch)
    if share == 0:
        return loss
    with torch.no_grad(), _teaching(adapters):
        dense = text_logits(model, batch).log_softmax(-1)
    return loss + share * divergence(logits, dense, batch.weight)


@contextmanager
def _teaching(adapters: list[SparseLora]) -> Iterator[None]:
    for adapter in adapters:
        adapter.teaches = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.teaches = False


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to a tenth."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def _shuffled_batches(samples: Sequence[Sample], size: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Batches without end: every sample once before any comes again."""
    waiting: list[Sample] = []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(samples, len(samples))
        yield waiting[:size]
        waiting = waiting[size:]
