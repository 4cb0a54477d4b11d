"""ONNX export: three graphs, with everything that the edge runtime reads beside them.

Equal weights give equal bytes: names come from the model, and what the tracer leaves behind (stack traces, paths of
this machine) is removed. Weights keep their names in the model, so that a tool finds a matrix again.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import ExportError
from ..model import Model
from ..progress import Progress
from .checkpoint import save_settings
from .graphs import graphs_of
from .job import ExportJob
from .limits import refuse_quantized, require_known_tower
from .onnx_data import require_as_written
from .onnx_storage import token_table, write
from .onnx_stored import stored_reference
from .trace import trace
from .verify import verify_onnx

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
    _save_picture_settings(folder)
    graphs = graphs_of(model)
    bar = progress.bar("writing ONNX graphs", total=len(graphs))
    for graph in graphs:
        file = folder / f"{graph.name}.onnx"
        require_as_written(file, write(trace(graph), model, job, file))
        bar.advance(graph.name)
    reference = stored_reference(folder, token_table(model))
    verification = verify_onnx(model, folder, reference, job.prompts, progress)
    return {"weights": job.config.onnx.weights, **verification}


def _save_picture_settings(folder: Path) -> None:
    """The image processor's settings once more, in a file of their own: transformers.js looks for that one."""
    pictures = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n", encoding="utf-8")
