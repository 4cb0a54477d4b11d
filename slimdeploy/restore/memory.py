"""What training can do with less memory: blocks that are run again for the backward pass, and half the activations."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ..config import RestoreConfig
from ..model import Model
from ..prune.recording import standing_in


@contextmanager
def recomputed(model: Model) -> Iterator[None]:
    """Gradient checkpointing: the blocks of both towers keep nothing but inputs for the backward pass.

    It runs them again (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), and so drops the adapted
    weights as well, which are as large as the model. transformers' own switch works in training mode only, which would
    turn on the dropout of a model that stays frozen.
    """
    with ExitStack() as stack:
        for path in (*model.vision_blocks(), *model.language_blocks()):
            block = model.module.get_submodule(path)
            # A frozen model in evaluation draws no random numbers whose state would have to be kept.
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(standing_in(block, again))
        yield


def computing(model: Model, config: RestoreConfig) -> AbstractContextManager[object]:
    """Forward passes in the body compute as `restore.dtype` says."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
