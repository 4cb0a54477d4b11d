"""A packed checkpoint is loaded by transformers at once and compared with the model that it came from.

What it must equal is plain torch with the unpacked weights and the operator's rounding of activations. Each product is
held to that closely. Whole answers cannot be: where an activation lies half-way between two codes, another order of
summation rounds it the other way, and the layers behind multiply that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from ..errors import ExportError
from ..model import Model, encode, quiet_transformers
from ..packed import PackedTensor, ValueType, unpack
from ..packed_linear import PackedLinear
from ..progress import Progress
from ..prune import set_weights
from ..samples import Sample
from ..sparse_linear import round_activations
from ..transformers_plugin import PackedConfig
from .verify import Answer, greedy_in_torch

MAX_RELATIVE_ERROR: Final[Mapping[ValueType, float]] = {"bf16": 5e-3, "fp16": 1e-4, "int8": 1e-4, "int4": 1e-4}
"""||y - reference|| / ||reference|| that a product may have; bf16 is rounded once more on some CPUs."""
TIE: Final[Mapping[ValueType, float]] = {"bf16": 0.01, "fp16": 1e-4, "int8": 0.05, "int4": 0.05}
"""Where torch's two best logits are closer than this share of the best, either token is right. Rounding the other way
was seen to move a logit by up to 0.2% of the best (bf16, demo model) and 1.8% (eight bits, a random model)."""
_PRODUCTS_ON = 3
"""Prompts whose activations the products are compared on."""


@torch.no_grad()
def verify_packed(
    model: Model, folder: Path, packed: Mapping[str, PackedTensor], prompts: Sequence[Sample], progress: Progress
) -> dict[str, Any]:
    """Load what was written: its tensors must be what was packed, its products and greedy tokens the reference's.

    Raises ExportError that names the first tensor, layer or prompt that differs.
    """
    loaded = load_again(model, folder)
    tensors = compare_tensors(model, loaded, packed)
    before = [greedy_in_torch(model, prompt) for prompt in progress.track(prompts, "asking torch", len(prompts))]
    with unpacked(model, packed):
        error = compare_products(model, loaded, packed, prompts[:_PRODUCTS_ON])
        tracked = progress.track(prompts, "asking torch with unpacked weights", len(prompts))
        expected = [greedy_in_torch(model, prompt) for prompt in tracked]
    tracked = progress.track(prompts, "verifying the packed checkpoint", len(prompts))
    answers = [greedy_in_torch(loaded, prompt) for prompt in tracked]
    tie = TIE[next(iter(packed.values())).encoding.values]
    ties = sum(count_tie(*compared, tie) for compared in zip(prompts, expected, answers, strict=True))
    return {
        "tensors_equal": tensors,
        "relative_error_of_products": float(f"{error:.0e}"),
        "prompts": len(prompts),
        "tokens": sum(len(answer.tokens) for answer in expected),
        "ties": ties,
        "prompts_answered_as_before_packing": sum(a.tokens == b.tokens for a, b in zip(answers, before, strict=True)),
    }


def load_again(model: Model, folder: Path) -> Model:
    """The checkpoint in `folder` as transformers loads it."""
    try:
        with quiet_transformers():
            module = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever it is, the export is of no use
        raise ExportError(f"what was exported of {model.name} does not load again: {error}") from error
    assert isinstance(module.config.quantization_config, PackedConfig), "importing it is what registers it"
    return replace(model, module=module.eval(), source=folder)


def compare_tensors(model: Model, loaded: Model, packed: Mapping[str, PackedTensor]) -> int:
    """Number of tensors, all of which must be bit for bit what the model has, or what was packed."""
    expected = {
        name: tensor for name, tensor in model.module.state_dict().items() if name.removesuffix(".weight") not in packed
    }
    for name, weight in packed.items():
        expected |= {f"{name}.{part}": tensor for part, tensor in PackedLinear.of(weight).state_dict().items()}
    found = loaded.module.state_dict()
    for name in expected.keys() | found.keys():
        ours, theirs = expected.get(name), found.get(name)
        if ours is None or theirs is None or ours.dtype != theirs.dtype or not torch.equal(ours.cpu(), theirs):
            raise ExportError(f"tensor {name} of {model.name} is not the same once it is exported and loaded again")
    return len(found)


@contextmanager
def unpacked(model: Model, packed: Mapping[str, PackedTensor]) -> Iterator[None]:
    """The reference while the body runs: unpacked weights, rounded activations, torch's own products."""
    before = {name: model.linear(name).weight.detach().clone() for name in packed}
    set_weights(model, {name: torch.from_numpy(unpack(weight)) for name, weight in packed.items()})
    with ExitStack() as stack:
        for name, weight in packed.items():
            hook = model.linear(name).register_forward_pre_hook(_rounding(weight.encoding.values))
            stack.callback(hook.remove)
        try:
            yield
        finally:
            set_weights(model, before)


def _rounding(values: ValueType) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    return lambda _, arguments: (round_activations(arguments[0].float(), values).to(arguments[0].dtype),)


def compare_products(
    model: Model, loaded: Model, packed: Mapping[str, PackedTensor], prompts: Sequence[Sample]
) -> float:
    """Largest relative error of a packed layer on the activations that it has in the reference.

    Raises ExportError that names the first layer whose error is too large.
    """
    largest = 0.0

    def compare(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor], expected: Tensor) -> None:
            nonlocal largest
            # Rounding what is rounded already changes nothing.
            difference = loaded.module.get_submodule(name)(arguments[0]) - expected
            error = float(difference.norm() / expected.norm().clamp(min=1e-30))
            largest = max(largest, error)
            if not error <= MAX_RELATIVE_ERROR[packed[name].encoding.values]:  # also where it is no number
                raise ExportError(
                    f"the packed layer {name} differs from torch by a relative error of {error:.2g}; "
                    "set export.checkpoint.weights = 'dense' and report this model"
                )

        return hook

    with ExitStack() as stack:
        for name in packed:
            stack.callback(model.linear(name).register_forward_hook(compare(name)).remove)
        for prompt in prompts:
            model.module(**encode(model, [prompt]), logits_to_keep=1)
    return largest


def count_tie(prompt: Sample, expected: Answer, answer: Answer, tie: float) -> int:
    """0 when the tokens are the reference's; 1 when they part where it could as well have taken another token.

    Raises ExportError when they part anywhere else.
    """
    for step, (ours, theirs) in enumerate(zip(answer.tokens, expected.tokens, strict=False)):
        if ours != theirs:
            if expected.margins[step] < tie:
                return 1  # from here on both continue different texts
            raise ExportError(
                f"on prompt {prompt.id} the packed checkpoint answers token {ours} at step {step} where torch with the "
                f"unpacked weights answers {theirs} (by a margin of {expected.margins[step]:.2g}); "
                "set export.checkpoint.weights = 'dense' and report this model"
            )
    return 0
