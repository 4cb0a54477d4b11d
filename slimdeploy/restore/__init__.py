"""Restoration: low-rank adapters beneath the masks win back what pruning lost; merging them keeps every zero.

The model comes dense and teaches: it is the same module with masks and adapters left out, with the evolved projector
where the search brought one. Knows nothing of policies: the masks say it all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from ..config import RestoreConfig
from ..errors import PruneError
from ..model import Model
from ..progress import Progress
from ..prune import Masks, apply_masks, set_weights
from ..samples import Sample
from .adapters import PlainLora, SparseLora, adapted
from .reconstruction import Errors, reconstruct
from .states import States
from .training import train

__all__ = ["PlainLora", "RestoreReport", "SparseLora", "restore"]

_AS_THEY_ARE: Final[Mapping[str, Tensor]] = MappingProxyType({})


@dataclass(frozen=True)
class RestoreReport:
    """What restoration did.

    losses: of every training step. answered: share of the samples that have an answer; the others teach by the dense
    model's predictions alone. kept: weights inside the masks. reconstruction: errors of the blocks before and after.
    """

    losses: tuple[float, ...]
    answered: float
    kept: int
    reconstruction: Errors = field(default_factory=dict)


def restore(
    model: Model,
    masks: Masks,
    samples: Sequence[Sample],
    config: RestoreConfig,
    progress: Progress,
    start: Mapping[str, Tensor] = _AS_THEY_ARE,
    journal: Path | None = None,
) -> RestoreReport:
    """Train adapters under the masks and merge them, in place; afterwards every weight outside the masks is zero.

    The model comes dense. start: (out, in) by name, weights that pruning changed beyond zeros: training starts from
    them while the dense ones teach. Layers with neither mask nor start stay as they are, and so does everything that is
    no weight matrix. journal: a folder for one set of inputs; what a killed restoration has left there, the
    next one goes on from. Whatever is raised, the model is as dense as it came. Raises PruneError where there is
    nothing to learn from, or the loss is not finite.
    """
    masks = masks | {name: torch.ones_like(weight).bool() for name, weight in start.items() if name not in masks}
    kept = sum(int(mask.sum()) for mask in masks.values())
    if config.method == "none":
        set_weights(model, start)
        apply_masks(model, masks)
        return RestoreReport((), 0.0, kept)
    if not samples:
        raise PruneError("restoration has no samples; give a train split, or set restore.method = 'none'")
    answered = sum(bool(sample.answers) for sample in samples) / len(samples)
    if answered < 1:
        progress.note(
            f"{1 - answered:.0%} of the training samples have no answer: the dense model's predictions teach."
        )
    states = States(journal)
    with adapted(model, masks, start, config) as adapters:
        errors: Errors = {}
        if config.reconstruction_steps:
            errors = reconstruct(model, adapters, samples, config, progress, states)
        losses = train(model, adapters, samples, config, progress, states)
    assert all(not bool(model.linear(name).weight[~mask.to(model.device)].any()) for name, mask in masks.items())
    return RestoreReport(tuple(losses), answered, kept, errors)
