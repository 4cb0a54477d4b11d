"""From a model's matrices to packed ones: which are packed, and how each is stored. Knows no file."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..packed import Encoding, PackedTensor, pack
from ..packed_tensor import ALL_KEPT, dense_bytes
from ..progress import Progress
from .job import ExportJob

if TYPE_CHECKING:
    from ..model import Model


def pack_weights(model: "Model", job: ExportJob, progress: Progress) -> dict[str, PackedTensor]:
    """Every matrix that may be pruned, whether it was or not; embeddings and the head stay as they are."""
    names = [layer.name for layer in model.layers()]
    return {
        name: pack_smallest(model.weight(f"{name}.weight"), job.encoding(name, job.config.weights), job.pattern(name))
        for name in progress.track(names, "packing the weights", total=len(names))
    }


def pack_smallest(weight: NDArray[np.float32], encoding: Encoding, pattern: str) -> PackedTensor:
    """As `pattern` says, or as "dense" where that takes less: a mask costs a bit per weight, however few are pruned."""
    packed = pack(weight, encoding, pattern)
    pays = packed.bytes < dense_bytes(packed.rows, packed.columns, encoding)
    return packed if pays else pack(weight, encoding, ALL_KEPT)
