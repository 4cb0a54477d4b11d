"""ONNX export: three graphs, with everything that the edge runtime reads beside them.

Equal weights give equal bytes: names come from the model, and what the tracer leaves behind (stack traces, paths of
this machine) is removed. Weights keep their names in the model, so that a tool finds a matrix again.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from onnxscript import ir
from torch import Tensor

from ..errors import ExportError
from ..model import Model
from ..progress import Progress
from .checkpoint import save_settings
from .graphs import graphs_of
from .job import ExportJob
from .limits import refuse_quantized, require_known_tower
from .onnx_storage import storage_of
from .trace import is_weight, trace
from .verify import verify_onnx

# Weights beyond this lie beside their graph, in NAME.onnx_data: onnxruntime maps that file, where a graph's own weights
# are in memory twice until the session is made, and a protobuf cannot hold 2 GB.
SINGLE_FILE_BYTES = 32_000_000

# Their frequencies depend on the length of the sequence, which a traced graph cannot follow.
_LENGTH_DEPENDENT_ROTATIONS = ("dynamic", "longrope")


def check(model: Model) -> None:
    """Raises ExportError for towers and decoders that the three graphs cannot express."""
    if find_spec("onnxruntime") is None:
        raise ExportError(
            "an ONNX export is verified with onnxruntime, which is not installed; install slimdeploy[compress,edge]"
        )
    refuse_quantized(model)
    require_known_tower(model, "onnx")
    text = model.config.text_config
    rotation = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation in _LENGTH_DEPENDENT_ROTATIONS:
        raise ExportError(
            f"{model.name} has rotary embeddings of type '{rotation}', whose frequencies change with the length, and "
            "one ONNX graph holds one set; set export.format = 'checkpoint'"
        )


def export(model: Model, folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write graphs, configuration, tokenizer, processor and chat template; compare the graphs with torch."""
    check(model)
    dtype = model.module.dtype
    if dtype != torch.float32:
        raise ExportError(f"{model.name} is loaded as {dtype}, but the ONNX export holds float32; load it as float32")
    save_settings(model, folder)
    storage, graphs = storage_of(model, job, progress), graphs_of(model)
    bar = progress.bar("writing ONNX graphs", total=len(graphs))
    for graph in graphs:
        traced = trace(graph)
        put_weights_in(traced, model)
        write(storage.store(traced), folder / f"{graph.name}.onnx")
        bar.advance(graph.name)
    verification = verify_onnx(model, folder, storage.reference(), job.prompts, progress)
    return {"weights": job.config.onnx.weights, **verification}


def put_weights_in(traced: ir.Model, model: Model) -> None:
    """Give a traced graph the model's weights; copies are made of those that lie transposed, when they are written."""
    for value in traced.graph.initializers.values():
        if is_weight(value):
            name = str(value.name)
            weight = model.module.get_parameter(name.removesuffix(".transposed")).detach()
            lying = weight.T if value.meta.get("transposed") else weight
            shape = ir.Shape(lying.shape)
            value.const_value = ir.LazyTensor(
                partial(_contiguous, lying, name), dtype=ir.DataType.FLOAT, shape=shape, name=name
            )


def _contiguous(weight: Tensor, name: str) -> ir.TensorProtocol:
    return ir.tensor(weight.contiguous().numpy(), name=name)


def write(model: ir.Model, file: Path) -> None:
    """Into one file, or with the weights beside it: where there are many, and where our operators read them.

    The operators give the pages of a file back; a weight inside a graph would stay in memory beside their own copy.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    beside = f"{file.name}_data" if model.functions or size > SINGLE_FILE_BYTES else None
    ir.save(model, file, external_data=beside)
