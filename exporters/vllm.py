"""The checkpoint that vLLM serves: dense safetensors under the names of the hub, which vLLM's loader expects.

transformers 5 writes CLIP's weights without `vision_model.`, and vLLM 0.32 then finds no such module.
The names are data of the family (`Arch.hub_prefixes`); transformers reads them as well.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from ..errors import ExportError, ModelError
from ..model import Model
from ..progress import Progress
from .checkpoint import save_settings, verify_checkpoint
from .job import ExportJob
from .limits import refuse_quantized, require_known_tower


def check(model: Model) -> None:
    """Raises ExportError for a quantised model, and for weights that have no name in vLLM."""
    refuse_quantized(model)
    require_known_tower(model, "vllm")
    renamed_weights(model)


def export(model: Model, folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write weights, configuration, tokenizer and processor; load them again through transformers and compare."""
    check(model)
    save_torch_state_dict(renamed_weights(model), folder, max_shard_size="5GB", metadata={"format": "pt"})
    save_settings(model, folder)
    return verify_checkpoint(model, folder, job.prompts, progress)


def renamed_weights(model: Model) -> dict[str, Tensor]:
    """Weights under the hub's names; one that is tied to another is left to that one."""
    try:
        return {
            model.arch.hub_name(name): weight.detach()
            for name, weight in model.module.state_dict().items()
            if name not in model.pretrained.all_tied_weights_keys
        }
    except ModelError as error:
        raise ExportError(f"{model.name} cannot be exported to vLLM: {error}") from error
