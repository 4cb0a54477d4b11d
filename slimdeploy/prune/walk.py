"""The model block by block: vision tower, projector, language model, each fed with what the one before put out.

Activations wait on the CPU, so that only the block at work has to be on the device. Knows no criterion, mask or policy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from ..errors import PruneError
from ..model import Model, encode
from ..samples import Sample
from .recording import Call, Player, capturing, moved_to, recorded, silenced, standing_in

Observe = Callable[[str, Tensor], None]
"""Told a layer's name and its inputs, (tokens, in), in the order of the calls."""

Outputs = list[Any]
"""What a block put out, by call, on the CPU."""


class Block(Protocol):
    """A part of the model with its inputs, whose weights may change between two runs."""

    @property
    def path(self) -> str:
        """Of its module; empty for what stands between the towers."""

    @property
    def calls(self) -> Sequence[Call]:
        """What it is called with; none where it is a part of the model that is run as a whole."""

    def layers(self) -> list[str]:
        """Names of its linear layers."""

    def resident(self) -> AbstractContextManager[None]:
        """Its weights are in memory while the body runs; a model that was loaded whole has them there anyway."""

    def run(self, observe: Observe | None = None, tokens: Sequence[Tensor] | None = None) -> Outputs:
        """Outputs for all calls, with the weights that it has now.

        tokens: by call, which ones are observed, of `Call.valid`'s shape; all that are valid by default.
        """

    def watch(self, observe: Observe, tokens: Sequence[Tensor] | None = None) -> None:
        """As `run`, for what is observed alone: what nothing but outputs depends on may be left out."""

    def hand_on(self, outputs: Outputs) -> None:
        """Decide what the next block is given; has to be called before the walk goes on."""


def encode_all(model: Model, samples: Sequence[Sample], batch_size: int) -> list[BatchFeature]:
    """Batches of questions, pictures and, where known, answers.

    Raises PruneError where there is no sample, or none has a picture.
    """
    if not samples:
        raise PruneError("there are no calibration samples; pruning measures what the layers see, so give some")
    if not any(sample.images or sample.sounds for sample in samples):
        raise PruneError(
            f"none of the {len(samples)} calibration samples has a picture, or a sound for a model that hears; the "
            "tower needs some"
        )
    starts = range(0, len(samples), batch_size)
    return [encode(model, samples[start : start + batch_size], answers=True) for start in starts]


class Walk:
    """Every block in forward order, with inputs that the blocks before it have put out."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Mapping[str, Tensor]],
        with_included: bool = True,
        in_tuple: dict[str, bool] | None = None,
    ) -> None:
        """with_included: whether what `Model.include` adds to the blocks comes as a last block.

        in_tuple: as `recording.recorded` fills it in, running a first block; walks over one model may share it.
        """
        self.model = model
        self._with_included = with_included and bool(model.include)
        self._batches = batches
        self._outputs: dict[str, tuple[Outputs | None, bool]] = {}
        self._in_tuple = {} if in_tuple is None else in_tuple

    def __len__(self) -> int:
        return len(self.model.vision_blocks()) + 1 + len(self.model.language_blocks()) + self._with_included

    def __iter__(self) -> Iterator[Block]:
        model = self.model
        calls = self.recorded(model.arch.vision_blocks, self._batches)
        yield from self._tower(model.arch.vision_blocks, model.vision_blocks(), calls, model.feature_blocks())
        front = _Front(self, self._batches)
        yield front
        blocks = model.language_blocks()
        yield from self._tower(model.arch.language_blocks, blocks, front.handed_on, blocks[-1:])
        if self._with_included:
            yield _Rest(self, self._batches)

    def recorded(self, path: str, batches: Sequence[Mapping[str, Tensor]]) -> list[list[Call]]:
        """By block of the list at `path`, what the model calls it with; see `recording.recorded`."""
        return recorded(self.model, path, batches, self._in_tuple)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Blocks that were walked put out again what they did then, call by call, while the body runs the model."""
        with ExitStack() as stack:
            for path, (outputs, in_tuple) in self._outputs.items():
                block = self.model.module.get_submodule(path)
                played = None if outputs is None else iter(outputs)
                stack.enter_context(standing_in(block, Player(played, in_tuple)))
            yield

    def _tower(
        self, tower: str, paths: Sequence[str], calls: list[list[Call]], read: Sequence[str]
    ) -> Iterator["TowerBlock"]:
        """tower: path of the list whose first blocks, `paths`, are walked. read: whose outputs count.

        calls: by block, as recorded: what is added to the output of the block before.
        """
        outputs: Outputs = []
        # Blocks behind the features that the projector reads are called and not walked; nor are they run again.
        for i, own in enumerate(calls[len(paths) :], start=len(paths)):
            self._outputs[f"{tower}.{i}"] = (None, any(call.in_tuple for call in own))
        for path, own in zip(paths, calls, strict=False):
            if outputs:
                own = [replace(call, hidden=call.hidden + hidden) for call, hidden in zip(own, outputs, strict=True)]
            block = TowerBlock(self.model, path, own)
            yield block
            outputs = block.handed_on
            self._outputs[path] = (outputs if path in read else None, any(call.in_tuple for call in own))


@dataclass
class TowerBlock:
    """One module of a tower."""

    model: Model
    path: str
    calls: list[Call]
    handed_on: Outputs = field(default_factory=list)

    def layers(self) -> list[str]:
        return [name for name, _ in self.model.linears(self.path)]

    def resident(self) -> AbstractContextManager[None]:
        return self.model.resident(self.path)

    def output_of(self, call: Call) -> Tensor:
        """For one call, on the model's device; with gradients, unless the caller turns them off."""
        block = self.model.module.get_submodule(self.path)
        hidden, arguments, keywords = moved_to(self.model.device, (call.hidden, call.arguments, call.keywords), {})
        return _hidden_of(block(hidden, *arguments, **keywords))

    def run(self, observe: Observe | None = None, tokens: Sequence[Tensor] | None = None) -> Outputs:
        outputs = []
        for i, call in enumerate(self.calls):
            with capturing(self.model, self.layers()) as captured, torch.no_grad():
                output = self.output_of(call).cpu()
            if observe:
                _tell(observe, captured, tokens[i] if tokens else call.valid)
            outputs.append(output)
        return outputs

    def watch(self, observe: Observe, tokens: Sequence[Tensor] | None = None) -> None:
        with ExitStack() as stack, torch.no_grad():
            for i, call in enumerate(self.calls):
                with capturing(self.model, self.layers()) as captured:
                    self.output_of(call)
                _tell(observe, captured, tokens[i] if tokens else call.valid)
                if captured and i == 0:
                    # The layer that was called last is a quarter of a Llama's block.
                    stack.enter_context(silenced(self.model.linear(captured[-1][0])))

    def hand_on(self, outputs: Outputs) -> None:
        self.handed_on = outputs


@dataclass
class _Front:
    """Everything before the language model's blocks, run as the model runs it; the projector's layers are observed.

    What it puts out are the calls of the language model's blocks.
    """

    walk: Walk
    batches: Sequence[Mapping[str, Tensor]]
    handed_on: Outputs = field(default_factory=list)
    path: str = ""
    calls: Sequence[Call] = ()

    def layers(self) -> list[str]:
        return [name for name, _ in self.walk.model.projector_linears()]

    def resident(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, observe: Observe | None = None, _: Sequence[Tensor] | None = None) -> Outputs:
        model = self.walk.model
        calls: list[list[Call]] = []
        with self.walk.replayed():
            for batch in self.batches:
                with capturing(model, self.layers()) as captured:
                    own = self.walk.recorded(model.arch.language_blocks, [batch])
                calls = [before + more for before, more in zip(calls, own, strict=True)] if calls else own
                if not observe:
                    continue
                for name, seen in captured:
                    observe(name, _without_padding(seen, model.arch.projector_padding(name, batch)))
        return calls

    def watch(self, observe: Observe, _: Sequence[Tensor] | None = None) -> None:
        self.run(observe)

    def hand_on(self, outputs: Outputs) -> None:
        self.handed_on = outputs


@dataclass
class _Rest:
    """Layers that are pruned beside those of blocks and projector: the whole model is run, its blocks replayed."""

    walk: Walk
    batches: Sequence[Mapping[str, Tensor]]
    path: str = ""
    calls: Sequence[Call] = ()

    def layers(self) -> list[str]:
        return [name for name, _, _ in self.walk.model.included()]

    def resident(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, observe: Observe | None = None, _: Sequence[Tensor] | None = None) -> Outputs:
        model = self.walk.model
        with self.walk.replayed(), torch.no_grad():
            for batch in self.batches:
                with capturing(model, self.layers()) as captured:
                    model.module(**{name: part for name, part in batch.items() if name != "labels"}, use_cache=False)
                if not observe:
                    continue
                valid = batch["attention_mask"].bool()
                for name, seen in captured:
                    observe(name, seen[valid] if seen.shape[:-1] == valid.shape else seen.flatten(0, -2))
        return []

    def watch(self, observe: Observe, _: Sequence[Tensor] | None = None) -> None:
        self.run(observe)

    def hand_on(self, outputs: Outputs) -> None:
        """Nothing comes behind it."""


def _tell(observe: Observe, captured: list[tuple[str, Tensor]], tokens: Tensor) -> None:
    """Layers that were given one and the same tensor are told of one and the same."""
    chosen: dict[int, Tensor] = {}
    for name, seen in captured:
        if id(seen) not in chosen:
            chosen[id(seen)] = seen.flatten(0, -2) if bool(tokens.all()) else seen[tokens.to(seen.device)]
        observe(name, chosen[id(seen)])


def _without_padding(seen: Tensor, valid: Tensor | None) -> Tensor:
    """(tokens, in). seen: (..., tokens, in). valid: (..., last tokens), True where they are no padding."""
    if valid is None:
        return seen.flatten(0, -2)
    before = seen.shape[-2] - valid.shape[-1]
    return seen[nn.functional.pad(valid.to(seen.device), (before, 0), value=True)]


def _hidden_of(output: Any) -> Tensor:
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden
