"""Block-wise reconstruction: one block after the other, adapters learn to make its output the dense block's.

No gradient leaves a block, so a step is cheap and no answer is needed. Inputs are those of the dense model. The
projector is left to the training that follows.
"""

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import RestoreConfig
from ..model import Model, encode
from ..progress import Progress
from ..prune.walk import Outputs, TowerBlock, Walk
from ..samples import Sample
from .adapters import Adapters, adapter_tensors, set_adapters, teaching
from .memory import computing
from .optimization import learning_rate, optimizer_of, take_step
from .states import States

_SAMPLES = 128
_STATE = "reconstruction"
_ERROR = "error/"
_COMPLETE = "complete"

Errors = dict[str, tuple[float, float]]
"""By the block's path, ‖output - dense output‖² / ‖dense output‖² on the first batch, before and after."""


def reconstruct(
    model: Model,
    adapters: Adapters,
    samples: Sequence[Sample],
    config: RestoreConfig,
    progress: Progress,
    states: States,
) -> Errors:
    """Train the adapters of the towers' blocks on a few of the samples; goes on from what it finds in `states`."""
    saved = states.load(_STATE)
    if saved:
        set_adapters(adapters, saved)
    errors = _errors(model, saved)
    if _COMPLETE in saved:
        return errors
    chosen = random.Random(config.seed).sample(samples, min(_SAMPLES, len(samples)))
    starts = range(0, len(chosen), config.batch_size)
    batches = [encode(model, chosen[start : start + config.batch_size], answers=True) for start in starts]
    walk = Walk(model, batches)
    bar = progress.bar("reconstruct", total=len(walk))
    with teaching(adapters):
        for block in walk:
            with computing(model, config):
                outputs = block.run()
            own = {name: adapters[name] for name in block.layers() if name in adapters}
            if isinstance(block, TowerBlock) and block.calls and own and block.path not in errors:
                with teaching(own, False):
                    errors[block.path] = _fit(block, outputs, own, config)
                states.save(_STATE, _state(adapters, errors))
            block.hand_on(outputs)
            bar.advance()
    states.save(_STATE, _state(adapters, errors) | {_COMPLETE: torch.tensor(True)})
    return errors


def _state(adapters: Adapters, errors: Errors) -> dict[str, Tensor]:
    pairs = {_ERROR + path: torch.tensor(pair, dtype=torch.float64) for path, pair in errors.items()}
    return adapter_tensors(adapters) | pairs


def _errors(model: Model, saved: Mapping[str, Tensor]) -> Errors:
    paths = (*model.vision_blocks(), *model.language_blocks())
    pairs = {path: saved[_ERROR + path].tolist() for path in paths if _ERROR + path in saved}
    return {path: (before, after) for path, (before, after) in pairs.items()}


def _fit(block: TowerBlock, targets: Outputs, adapters: Adapters, config: RestoreConfig) -> tuple[float, float]:
    """Train the adapters of one block. Returns its error on the first batch before and after."""
    optimizer, steps = optimizer_of(adapters), config.reconstruction_steps
    with torch.no_grad():
        before = float(_error(block, targets, 0, config))
    for step in range(steps):
        loss = _error(block, targets, step % len(block.calls), config)
        take_step(optimizer, loss, learning_rate(config, step, steps))
    with torch.no_grad():
        return before, float(_error(block, targets, 0, config))


def _error(block: TowerBlock, targets: Outputs, batch: int, config: RestoreConfig) -> Tensor:
    """‖output - dense output‖² / ‖dense output‖² over the tokens of a batch that are no padding."""
    call = block.calls[batch]
    with computing(block.model, config):
        output = block.output_of(call)
    valid = call.valid.to(output.device).unsqueeze(-1)
    target: Tensor = targets[batch].to(output.device).float() * valid
    difference = output.float() * valid - target
    return difference.square().sum() / target.square().sum()
