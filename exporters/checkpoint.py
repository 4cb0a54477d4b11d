"""The checkpoint that transformers loads: dense safetensors in which pruned weights are zeros, or packed ones."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError, ModelError
from ..model import DType, Model, encode, load_model, quiet_transformers
from ..progress import Progress
from ..samples import Sample
from .job import ExportJob
from .limits import refuse_quantized

# Prompts whose logits are compared at a time: a batch holds the logits of every position.
_BATCH = 4


def check(model: Model) -> None:
    """Raises ExportError for a quantised model; any other that was loaded can be written."""
    refuse_quantized(model)


def export(model: Model, folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write weights, configuration, tokenizer and processor; load them again and compare."""
    check(model)
    if job.config.weights != "dense":
        from .packed_checkpoint import export_packed

        return export_packed(model, folder, job, progress)
    model.save(folder)
    save_settings(model, folder)
    return verify_checkpoint(model, folder, job.prompts, progress)


def save_settings(model: Model, folder: Path, quantization: Mapping[str, Any] | None = None) -> None:
    """Everything of a model but its weights: configuration, tokenizer, processor, chat template.

    quantization: how the weights are stored, for config.json, where they are not plain numbers.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model.module).__name__]
    config.dtype = dtype_name(model)
    # The zeros are stored like any other number, and vLLM refuses a checkpoint that speaks of sparsity.
    vars(config).pop("sparsity_config", None)
    if quantization is not None:
        config.quantization_config = dict(quantization)
    with quiet_transformers():
        config.save_pretrained(folder)
        model.pretrained.generation_config.save_pretrained(folder)
    model.save_processor(folder)


def dtype_name(model: Model) -> DType:
    """The type of the weights."""
    match model.pretrained.dtype:
        case torch.float32:
            return "float32"
        case torch.bfloat16:
            return "bfloat16"
        case torch.float16:
            return "float16"
        case other:
            raise ExportError(f"{model.name} has weights of type {other}; load it as float32, bfloat16 or float16")


@torch.no_grad()
def verify_checkpoint(model: Model, folder: Path, prompts: Sequence[Sample], progress: Progress) -> dict[str, Any]:
    """Load what was written: every weight and every logit must be the model's, bit for bit.

    Raises ExportError that names the first weight or prompt that differs.
    """
    try:
        again = load_model(str(folder), dtype=dtype_name(model), device=str(model.device))
    except ModelError as error:
        raise ExportError(f"what was exported of {model.name} does not load again: {error}") from error
    written = again.module.state_dict()
    zeros = 0
    for name, weight in model.module.state_dict().items():
        if not _same(weight, written.get(name)):
            raise ExportError(f"weight {name} of {model.name} is not the same once it is exported and loaded again")
        zeros += int((weight == 0).sum())
    batches = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
    for batch in progress.track(batches, "verifying the checkpoint", total=len(batches)):
        inputs = encode(model, batch)
        if not torch.equal(model.module(**inputs).logits, again.module(**encode(again, batch)).logits):
            raise ExportError(f"logits on prompts {batch[0].id} to {batch[-1].id} change once {model.name} is exported")
    return {"weights_equal": len(written), "zeros": zeros, "prompts_with_equal_logits": len(prompts)}


def _same(weight: Tensor, written: Tensor | None) -> bool:
    return written is not None and weight.dtype == written.dtype and torch.equal(weight, written)
