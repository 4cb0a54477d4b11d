"""What the linear layers see: the squared norm of every input feature over the calibration tokens.

Each tower is walked block by block over all batches, activations waiting on the CPU between blocks, so that only one
block has to be on the device. Inputs come from the dense model; padding is left out. Knows no criterion and no policy.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BatchFeature

from ..errors import PruneError
from ..model import Model, encode, linears_in
from ..progress import Bar, Progress
from ..samples import Sample

_FILE = "statistics.safetensors"


@dataclass
class Stats:
    """input_sq_sum: (in,) per layer, sum of squared inputs over tokens. tokens: how many there were, per layer."""

    input_sq_sum: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        tensors = {f"input_sq_sum/{name}": tensor.contiguous() for name, tensor in self.input_sq_sum.items()}
        tensors |= {f"tokens/{name}": torch.tensor(count) for name, count in self.tokens.items()}
        save_file(tensors, folder / _FILE)

    @staticmethod
    def load(folder: Path) -> "Stats":
        tensors = load_file(folder / _FILE)
        return Stats(
            {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("input_sq_sum/")},
            {name.partition("/")[2]: int(count) for name, count in tensors.items() if name.startswith("tokens/")},
        )

    def add(self, name: str, inputs: Tensor) -> None:
        """Count `inputs` (tokens, in) of a layer."""
        # float64: sums over millions of tokens must not depend on how they were batched.
        squares = inputs.double().square().sum(0).cpu()
        if not bool(torch.isfinite(squares).all()):
            raise PruneError(
                f"the inputs of {name} hold NaN or infinity; check the checkpoint's weights, or load it as float32"
            )
        self.input_sq_sum[name] = self.input_sq_sum.get(name, torch.zeros_like(squares)) + squares
        self.tokens[name] = self.tokens.get(name, 0) + inputs.shape[0]


@dataclass(frozen=True)
class _Call:
    """What a block is called with for one batch, on the CPU. valid: (batch, tokens) True where it is no padding."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    valid: Tensor


def collect_stats(model: Model, samples: Sequence[Sample], batch_size: int, progress: Progress) -> Stats:
    """Statistics of every prunable layer over questions, pictures and, where known, answers.

    Raises PruneError where a layer's inputs are not finite, or where no sample shows a picture.
    """
    if not any(sample.images for sample in samples):
        raise PruneError(f"none of the {len(samples)} calibration samples has a picture; the vision tower needs some")
    batches = [
        encode(model, samples[start : start + batch_size], answers=True) for start in range(0, len(samples), batch_size)
    ]
    stats = Stats()
    vision_blocks, language_blocks = model.vision_blocks(), model.language_blocks()
    bar = progress.bar("statistics", total=len(vision_blocks) + 1 + len(language_blocks))
    with torch.no_grad():
        _walk(model, vision_blocks, _vision_calls(model, batches), stats, bar)
        with _counting(model, model.arch.projector, stats):
            calls = _language_calls(model, batches)
        bar.advance()
        _walk(model, language_blocks, calls, stats, bar)
    return stats


def _walk(model: Model, blocks: list[str], calls: list[_Call], stats: Stats, bar: Bar) -> None:
    """Send every batch through one block after the other, counting what its linear layers are given."""
    for path in blocks:
        block = model.module.get_submodule(path)
        for i, call in enumerate(calls):
            with _counting(model, path, stats, call.valid):
                inputs, arguments, keywords = _moved((call.hidden, call.arguments, call.keywords), model.device)
                output = block(inputs, *arguments, **keywords)
            # Before transformers 5.23 blocks gave a tuple that starts with the hidden states.
            hidden = output if isinstance(output, Tensor) else output[0]
            calls[i] = replace(call, hidden=hidden.cpu())
        bar.advance()


@contextmanager
def _counting(model: Model, path: str, stats: Stats, valid: Tensor | None = None) -> Iterator[None]:
    """Count the inputs of all linear layers under `path` while the body runs; all of them where `valid` is None."""

    def hook(name: str) -> Any:
        def count(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0]
            kept = inputs.flatten(0, -2) if valid is None else inputs[valid.to(inputs.device)]
            stats.add(name, kept)

        return count

    with ExitStack() as stack:
        for name, linear in linears_in(model.module, path):
            stack.callback(linear.register_forward_pre_hook(hook(name)).remove)
        yield


def _vision_calls(model: Model, batches: list[BatchFeature]) -> list[_Call]:
    tower = model.module.get_submodule(model.arch.vision_tower)
    with _recording(model.module, model.arch.vision_blocks) as recorder:
        for batch in batches:
            if "pixel_values" in batch:
                tower(batch["pixel_values"])
    return [
        _Call(hidden, arguments, keywords, torch.ones(hidden.shape[:2], dtype=torch.bool))
        for hidden, arguments, keywords in recorder.calls
    ]


def _language_calls(model: Model, batches: list[BatchFeature]) -> list[_Call]:
    with _recording(model.module, model.arch.language_blocks) as recorder:
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            model.module(**inputs, use_cache=False, logits_to_keep=1)
    return [
        _Call(hidden, arguments, keywords, batch["attention_mask"].bool().cpu())
        for batch, (hidden, arguments, keywords) in zip(batches, recorder.calls, strict=True)
    ]


class _Recorder(nn.Module):
    """Stands where the blocks were, remembers what the first would have been called with, and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        self.calls.append(_moved((hidden, arguments, keywords), torch.device("cpu")))
        return hidden


@contextmanager
def _recording(module: nn.Module, path: str) -> Iterator[_Recorder]:
    """Put a recorder in the place of a list of blocks."""
    parent_path, _, name = path.rpartition(".")
    parent, blocks, recorder = module.get_submodule(parent_path), module.get_submodule(path), _Recorder()
    setattr(parent, name, nn.ModuleList([recorder]))
    try:
        yield recorder
    finally:
        setattr(parent, name, blocks)


def _moved(value: Any, device: torch.device) -> Any:
    """`value` with all tensors in it, however deep, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(part, device) for part in value)
    return value
