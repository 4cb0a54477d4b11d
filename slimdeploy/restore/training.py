"""Training of the adapters on questions and answers, with the dense model as a teacher."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..config import RestoreConfig
from ..losses import TextBatch, answer_loss, divergence, taught, text_batch, text_logits
from ..model import Model
from ..progress import Progress
from ..samples import Sample
from .adapters import Adapters, adapter_tensors, set_adapters, teaching
from .memory import computing, recomputed
from .optimization import learning_rate, optimizer_of, take_step
from .states import States

_STEPS_BETWEEN_STATES = 10
_TRAINING = "training"
_LOSSES = "losses"


def train(
    model: Model,
    adapters: Adapters,
    samples: Sequence[Sample],
    config: RestoreConfig,
    progress: Progress,
    states: States,
) -> list[float]:
    """Loss per step: (1 - λ) · cross-entropy of the answers + λ · divergence from the dense model.

    Goes on from what it finds in `states`, and on the CPU it then arrives at the same adapters, bit for bit.
    """
    optimizer = optimizer_of(adapters)
    losses = _go_on(adapters, optimizer, states)
    batches = _shuffled_batches(samples, config.batch_size, random.Random(config.seed))
    bar = progress.bar("restore", total=config.steps)
    if losses:
        progress.say(f"restoration goes on after step {len(losses)}")
        bar.advance(count=len(losses))
    with recomputed(model) if config.gradient_checkpointing else nullcontext():
        for batch in islice(batches, len(losses), config.steps):
            loss = _loss(model, adapters, batch, config)
            losses.append(take_step(optimizer, loss, learning_rate(config, len(losses), config.steps)))
            if len(losses) % _STEPS_BETWEEN_STATES == 0:
                _save(adapters, optimizer, losses, states)
            bar.advance(f"loss {losses[-1]:.3f}")
    return losses


def _save(adapters: Adapters, optimizer: Optimizer, losses: Sequence[float], states: States) -> None:
    moments = {
        f"optimizer/{index}/{key}": value
        for index, of_parameter in optimizer.state_dict()["state"].items()
        for key, value in of_parameter.items()
    }
    losses_exactly = torch.tensor(losses, dtype=torch.float64)
    states.save(_TRAINING, {**adapter_tensors(adapters), **moments, _LOSSES: losses_exactly})


def _go_on(adapters: Adapters, optimizer: Optimizer, states: States) -> list[float]:
    """Put adapters and optimizer where they were when they were saved last. Returns the losses up to there."""
    saved = states.load(_TRAINING)
    if not saved:
        return []
    set_adapters(adapters, saved)
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in saved.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments[int(index)][key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(moments)})
    return [float(loss) for loss in saved[_LOSSES]]


def _loss(model: Model, adapters: Adapters, samples: Sequence[Sample], config: RestoreConfig) -> Tensor:
    batch = text_batch(model, samples)
    # A batch without a single answer has only the dense model to learn from.
    share = config.distillation if bool(batch.is_answer.any()) else 1.0
    logits = _logits(model, batch, config)
    loss = (1 - share) * answer_loss(logits, batch)
    if share == 0:
        return loss
    with torch.no_grad(), teaching(adapters):
        dense = taught(_logits(model, batch, config))
    return loss + share * divergence(logits, dense, batch.weight)


def _logits(model: Model, batch: TextBatch, config: RestoreConfig) -> Tensor:
    with computing(model, config):
        return text_logits(model, batch)


def _shuffled_batches(samples: Sequence[Sample], size: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Batches without end: every sample once before any comes again."""
    waiting: list[Sample] = []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(samples, len(samples))
        yield waiting[:size]
        waiting = waiting[size:]
