"""The packed checkpoint: weights without their zeros, which transformers loads with slimdeploy.transformers_plugin.

Every other tensor is stored in the narrowest type that holds it exactly, so that it loads as it was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import WEIGHTS
from ..errors import ExportError
from ..model import Model
from ..packed import PackedTensor, write_packed
from ..packed_config import quantization_config
from ..progress import Progress
from .checkpoint import dtype_name, save_settings
from .job import ExportJob
from .packing import pack_weights
from .verify_packed import verify_packed


def export_packed(model: Model, folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write packed weights, configuration, tokenizer and processor; load them again and compare."""
    if (dtype := dtype_name(model)) != "float32":
        raise ExportError(f"{model.name} is loaded as {dtype}, but is packed from float32; load it as float32")
    packed = pack_weights(model, job, progress)
    write_packed(folder / WEIGHTS, packed, other_tensors(model, packed))
    save_settings(model, folder, quantization_config(packed))
    verification = verify_packed(model, folder, packed, job.prompts, progress)
    return {"weights": job.config.checkpoint.weights, **verification}


def other_tensors(model: Model, packed: Mapping[str, PackedTensor]) -> dict[str, NDArray[Any]]:
    """What is stored beside packed weights; a tensor that is tied to another is left to that one."""
    left_out = {f"{name}.weight" for name in packed} | set(model.pretrained.all_tied_weights_keys)
    return {
        name: narrowest(tensor.detach().cpu())
        for name, tensor in model.module.state_dict().items()
        if name not in left_out
    }


def narrowest(tensor: Tensor) -> NDArray[Any]:
    """The same numbers as float16 or bfloat16, where every one of them is exact in it."""
    if tensor.is_floating_point():
        if torch.equal(tensor.half().to(tensor.dtype), tensor):
            tensor = tensor.half()
        elif torch.equal(tensor.bfloat16().to(tensor.dtype), tensor):
            bits: NDArray[np.uint16] = tensor.bfloat16().contiguous().view(torch.uint16).numpy()
            return bits.view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()
