"""A packed checkpoint is loaded by transformers at once and compared with the model that it came from.

What it must equal is plain torch with the unpacked weights and the operator's rounding of activations. Each product is
held to that closely. Whole answers cannot be: where an activation lies half-way between two codes, another order of
summation rounds it the other way, and the layers behind multiply that.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMultimodalLM

from ..errors import ExportError
from ..kernels.library import library_file
from ..model import Model, encode, quiet_transformers
from ..packed import PackedTensor
from ..packed_linear import PackedLinear
from ..progress import Progress
from ..samples import Sample
from ..transformers_plugin import PackedConfig
from .judging import count_tie, end_ids, greedy_in_torch, judge, require_same_ends
from .reference import Reference, packed_reference, standing_in
from .verify_products import MAX_RELATIVE_ERROR

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
    reference = replace(packed_reference(packed), dense="export.checkpoint.weights = 'dense'")
    require_same_ends(model, end_ids(loaded))
    tracked = progress.track(prompts, "asking the packed checkpoint", len(prompts))
    answers = [greedy_in_torch(loaded, prompt) for prompt in tracked]
    with standing_in(model, reference):
        error = compare_layers(model, loaded, reference, prompts[:_PRODUCTS_ON])
        tracked = progress.track(prompts, "asking torch", len(prompts))
        ties = sum(count_tie(p, a, judge(model, p, a), reference) for p, a in zip(tracked, answers, strict=True))
    tracked = progress.track(prompts, "asking torch with float32 weights", len(prompts))
    in_float32 = sum(judge(model, p, a).best == a for p, a in zip(tracked, answers, strict=True))
    return {
        "tensors_equal": tensors,
        "relative_error_of_products": float(f"{error:.0e}"),
        "prompts": len(prompts),
        "tokens": sum(map(len, answers)),
        "ties": ties,
        "prompts_answered_as_in_float32": in_float32,
        "kernels": library_file() is not None,
    }


def load_again(model: Model, folder: Path) -> Model:
    """The checkpoint in `folder` as transformers loads it."""
    try:
        with quiet_transformers():
            module = AutoModelForMultimodalLM.from_pretrained(
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


def compare_layers(model: Model, loaded: Model, reference: Reference, prompts: Sequence[Sample]) -> float:
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
            if not error <= MAX_RELATIVE_ERROR[reference.packed[name].encoding.values]:  # also where it is no number
                raise ExportError(
                    f"the packed layer {name} differs from torch by a relative error of {error:.2g}; "
                    f"set {reference.remedy} and report this model"
                )

        return hook

    with ExitStack() as stack:
        for name in reference.packed:
            stack.callback(model.linear(name).register_forward_hook(compare(name)).remove)
        for prompt in prompts:
            model.module(**encode(model, [prompt]), logits_to_keep=1)
    return largest
