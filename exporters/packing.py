"""From a model's matrices to packed ones: which are packed, and how each is stored. Knows no file."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..model import Model
from ..packed import Encoding, PackedTensor, pack
from ..packed_tensor import ALL_KEPT
from ..progress import Progress
from .job import ExportJob

ENCODINGS: Final = {
    "packed-int4": Encoding("int4", 128),
    "packed-int8": Encoding("int8", 128),
    "packed-bf16": Encoding("bf16"),
}
"""What a setting of `weights` stands for."""


def pack_weights(model: Model, job: ExportJob, encoding: Encoding, progress: Progress) -> dict[str, PackedTensor]:
    """Every matrix that may be pruned, whether it was or not; embeddings and the head stay as they are."""
    names = [layer.name for layer in model.layers()]
    return {
        name: pack_smallest(model.linear(name).weight.detach().float().cpu().numpy(), encoding, job.pattern(name))
        for name in progress.track(names, "packing the weights", total=len(names))
    }


def pack_smallest(weight: NDArray[np.float32], encoding: Encoding, pattern: str) -> PackedTensor:
    """As `pattern` says, or as "dense" where that takes less: a mask costs a bit per weight, however few are pruned."""
    packed = pack(weight, encoding, pattern)
    bits = {"int4": 4, "int8": 8, "bf16": 16, "fp16": 16}[encoding.values]
    dense_bytes = -(-packed.rows * packed.columns * bits // 8) + packed.scales.nbytes
    return packed if packed.bytes < dense_bytes else pack(weight, encoding, ALL_KEPT)
