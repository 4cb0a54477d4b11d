"""ONNX export: three graphs, with everything that the edge runtime reads beside them.

Equal weights give equal bytes: names come from the model, and what the tracer leaves behind (stack traces, paths of
this machine) is removed. Weights keep their names in the model, so that a tool finds a matrix again.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from onnxscript import ir
from onnxscript.optimizer import optimize_ir

from ..errors import ExportError
from ..model import Model
from ..progress import Progress
from .checkpoint import save_settings
from .graphs import Graph, graphs_of
from .job import ExportJob
from .limits import refuse_quantized, require_known_tower
from .onnx_storage import storage_of
from .verify import verify_onnx

# The first operator set with RMSNormalization, RotaryEmbedding and Attention, which onnxruntime (1.24 on) runs fastest.
OPSET = 23
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
    kinds = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if kinds or getattr(text, "sliding_window", None):
        raise ExportError(
            f"{model.name} has {', '.join(sorted(kinds)) or 'sliding-window attention'}, but the ONNX export holds "
            "full attention only; set export.format = 'checkpoint'"
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
        tidy(traced, names_in(model, graph))
        write(storage.store(traced), folder / f"{graph.name}.onnx")
        bar.advance(graph.name)
    verification = verify_onnx(model, folder, storage.reference(), job.prompts, progress)
    return {"weights": job.config.onnx.weights, **verification}


def names_in(model: Model, graph: Graph) -> dict[str, str]:
    """What the model calls the parameters of a graph. One that is tied to another goes by its own name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    own = {inner: names[id(parameter)] for inner, parameter in graph.part.named_parameters()}
    return {inner: next((name for name in found if name.endswith(inner)), found[0]) for inner, found in own.items()}


def trace(graph: Graph) -> ir.Model:
    """The graph as ONNX, optimised; weights are references to the model's own."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.part.eval(),
            graph.sample,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=graph.axes,
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # A weight that is folded into its transpose would lose its name, and all of them would be copied at once.
        optimize_ir(program.model, should_fold=lambda node: False if _transposed_weight(node) else None)
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of its own internals and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def tidy(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give weights the `names` that the model knows them by, as they are multiplied; drop what the tracer left."""
    for inner, name in names.items():
        if weight := model.graph.initializers.pop(inner, None):
            weight.name = name
            model.graph.register_initializer(weight)
    for node in list(model.graph):
        if weight := _transposed_weight(node):
            _store_transposed(model.graph, node, weight)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _transposed_weight(node: ir.Node) -> ir.Value | None:
    """The matrix that `node` transposes, when it is a weight of the model."""
    value = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
    return value if value is not None and value.is_initializer() and len(value.shape or ()) == 2 else None


def _store_transposed(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """Replace a transposed weight by a weight that lies transposed; the copy is made when it is written."""
    tensor = weight.const_value
    assert tensor is not None
    shape = ir.Shape(reversed(tensor.shape.numpy()))
    stored = ir.Value(name=weight.name, shape=shape, type=weight.type)
    stored.const_value = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().T.copy()), dtype=tensor.dtype, shape=shape, name=weight.name
    )
    ir.convenience.replace_all_uses_with(node.outputs[0], stored)
    graph.remove(node, safe=True)
    assert weight.name is not None
    # One that is used both ways keeps its name for the use that is not transposed.
    if weight.uses():
        stored.name = f"{weight.name}.transposed"
    else:
        del graph.initializers[weight.name]
    graph.register_initializer(stored)


def write(model: ir.Model, file: Path) -> None:
    """Into one file, or with the weights beside it: where there are many, and where our operators read them.

    The operators give the pages of a file back; a weight inside a graph would stay in memory beside their own copy.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    beside = f"{file.name}_data" if model.functions or size > SINGLE_FILE_BYTES else None
    ir.save(model, file, external_data=beside)
