"""Gradient checkpointing: memory for time, whatever the family and however its weights are made.

A block keeps its inputs alone; the backward pass runs it again (Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"). That drops the adapted weights too, which are as large as the model. transformers' own switch works only
in training mode, which a frozen model with dropout must not be in.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..model import Model


@contextmanager
def recomputed(model: Model) -> Iterator[None]:
    """The blocks of both towers keep nothing but inputs for the backward pass while the body runs."""
    with ExitStack() as stack:
        for path in (*model.vision_blocks(), *model.language_blocks()):
            block = model.module.get_submodule(path)
            stack.callback(_give_back, block, vars(block).get("forward"))
            # A frozen model in evaluation draws no random numbers whose state would have to be kept.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        yield


def _give_back(block: nn.Module, own: object) -> None:
    """own: a forward function that somebody else had set; None where it is the class's."""
    del block.forward
    if own is not None:
        vars(block)["forward"] = own
