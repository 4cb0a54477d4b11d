"""How a model calls its blocks, learnt by running it once with others in their places. Knows no walk.

Forward functions are replaced, not modules: hooks on a block, its class and its properties stay what they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Model


@dataclass(frozen=True)
class Call:
    """What a block is called with for one batch, on the CPU.

    hidden: (..., tokens, width). valid: (..., tokens), True where it is no padding. is_text: the same shape, True where
    a token is neither padding nor part of a picture; None in the vision tower. in_tuple: whether the block puts out a
    tuple that starts with hidden states, as before transformers 5.23.
    """

    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    valid: Tensor
    is_text: Tensor | None = None
    in_tuple: bool = False


@contextmanager
def capturing(model: Model, names: Sequence[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """The inputs of linear layers, as they come while the body runs."""
    captured: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Any:
        return lambda _, arguments: captured.append((name, arguments[0]))

    with ExitStack() as stack:
        for name in names:
            stack.callback(model.linear(name).register_forward_pre_hook(hook(name)).remove)
        yield captured


def recorded(
    model: Model, path: str, batches: Sequence[Mapping[str, Tensor]], in_tuple: dict[str, bool]
) -> list[list[Call]]:
    """By block of the list at `path`, what the model calls it with, batch by batch.

    Every block's stand-in puts out zeros. So what those after the first are given is what the model itself adds to
    hidden states between its blocks: nothing, in most families.
    in_tuple: by path of a list, whether its blocks put out tuples; what is not known yet is filled in.
    """
    language = path == model.arch.language_blocks
    by_block: list[list[Call]] = []
    for batch in batches:
        with ExitStack() as stack:
            recorders = stack.enter_context(_recording(model.module, path, in_tuple))
            if not language:
                stack.enter_context(_recording(model.module, model.arch.language_blocks, in_tuple))
            # Nobody reads logits, and a head has more weights than several blocks.
            stack.enter_context(standing_in(model.linear(model.arch.lm_head), lambda hidden: hidden))
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            with torch.no_grad():
                model.module(**inputs, use_cache=False, logits_to_keep=1)
        by_block = by_block or [[] for _ in recorders]
        for i in range(len(recorders[0].calls)):
            valid = batch["attention_mask"].bool().cpu() if language else _seen_by_others(*recorders[0].calls[i])
            is_text = valid & (batch["input_ids"] != model.media_token_id).cpu() if language else None
            for own, recorder in zip(by_block, recorders, strict=True):
                own.append(Call(*recorder.calls[i], valid, is_text, in_tuple[path]))
    return by_block


def _seen_by_others(hidden: Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """Tokens of a tower that are no padding, by its attention mask where it has one: (samples, 1, queries, keys)."""
    for mask in (*arguments, *keywords.values()):
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-1] == hidden.shape[-2]:
            attended = mask if mask.dtype == torch.bool else mask == 0
            return attended.any(2)[:, 0]
    return torch.ones(hidden.shape[:-1], dtype=torch.bool)


@dataclass(frozen=True)
class _Recorder:
    """The forward function of a block that remembers what it would have been called with, and puts out zeros."""

    own: Callable[..., Any]
    path: str
    is_first: bool
    in_tuple: dict[str, bool]
    moved: "_Moved"
    calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor | tuple[Tensor]:
        added = hidden_states if self.is_first or bool(hidden_states.any()) else hidden_states.new_zeros(())
        self.calls.append(moved_to(torch.device("cpu"), (added, arguments, keywords), self.moved))
        if self.path not in self.in_tuple:
            # Annotations tell wrong in some families, so the first block tells for all.
            self.in_tuple[self.path] = isinstance(self.own(hidden_states, *arguments, **keywords), tuple)
        zeros = torch.zeros_like(hidden_states)
        return (zeros,) if self.in_tuple[self.path] else zeros


@dataclass(frozen=True)
class Player:
    """The forward function of a block that was run before: what it put out then, or its input if that was dropped."""

    outputs: Iterator[Tensor] | None
    in_tuple: bool

    def __call__(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        output = next(self.outputs).to(hidden_states.device) if self.outputs else hidden_states
        return (output,) if self.in_tuple else output


@contextmanager
def _recording(module: nn.Module, path: str, in_tuple: dict[str, bool]) -> Iterator[list[_Recorder]]:
    """Let recorders stand in for a list of blocks."""
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    moved: _Moved = {}
    recorders = [_Recorder(block.forward, path, i == 0, in_tuple, moved) for i, block in enumerate(blocks)]
    with ExitStack() as stack:
        for block, recorder in zip(blocks, recorders, strict=True):
            stack.enter_context(standing_in(block, recorder))
        yield recorders


@contextmanager
def standing_in(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward function for a block while the body runs."""
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


def silenced(linear: nn.Linear) -> AbstractContextManager[None]:
    """A linear layer puts out zeros, for which its weights are not read, while the body runs."""
    return standing_in(linear, lambda hidden: hidden.new_zeros(*hidden.shape[:-1], linear.out_features))


_Moved = dict[int, tuple[Tensor, Tensor]]
"""Tensors with their copies, by identity: blocks share masks and rotary tables, which are copied once."""


def moved_to(device: torch.device, value: Any, moved: _Moved) -> Any:
    """`value` with all tensors in it, however deep, on `device`."""
    if isinstance(value, Tensor):
        if device == value.device:
            return value
        if id(value) not in moved:
            moved[id(value)] = value, value.to(device)
        return moved[id(value)][1]
    if isinstance(value, dict):
        return {key: moved_to(device, part, moved) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved_to(device, part, moved) for part in value)
    return value
