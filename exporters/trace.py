"""From a module to its ONNX graph: torch's exporter, then operators in place of what they are made of.

Weights are known by name and shape alone; `onnx` puts them in.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from onnxscript import ir
from onnxscript.optimizer import optimize_ir, remove_unused_nodes
from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

from .graph import Graph

# The first operator set with RotaryEmbedding and Attention.
OPSET = 23
_LOGGERS = ("torch.onnx", "onnx_ir")


def trace(graph: Graph) -> ir.Model:
    """The graph as ONNX, optimised. Weights have the model's names, as they are multiplied, and no values yet."""
    with _quiet(), torch.no_grad(), graph.tracing():
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
        traced = program.model
        _name_weights(traced.graph, graph.weights)
        optimize_ir(traced)
    _fuse_norms(traced)
    _drop_reshapes_there_and_back(traced.graph)
    remove_unused_nodes(traced)
    for node in list(traced.graph):
        _transpose_when_stored(traced.graph, node)
    _forget_the_tracer(traced)
    return traced


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of its own internals and of packages that are not needed."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_weights(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Under the model's `names`. Without values, for the optimiser would look for equal ones."""
    for inner, name in names.items():
        if weight := graph.initializers.pop(inner, None):
            weight.name, weight.const_value = name, None
            graph.initializers.add(weight)


def is_weight(value: ir.Value) -> bool:
    """Whether an initializer of a traced graph is one of the model's weights."""
    return value.const_value is None


def _fuse_norms(model: ir.Model) -> None:
    """RMSNormalization, and onnxruntime's operator for one that follows a sum."""
    fuse_rms_normalization(model)
    fuse_skip_rms_normalization(model)
    for node in model.graph:
        if node.op_type == "SimplifiedLayerNormalization":
            node.op_type = "RMSNormalization"  # its name in the standard since


def _drop_reshapes_there_and_back(graph: ir.Graph) -> None:
    """Heads are parted for the model and joined again for the operators: what has its old shape is used as it was.

    Sizes that are not known have names, and equal names mean equal sizes.
    """
    for node in graph:
        source = node.inputs[0] if node.op_type == "Reshape" else None
        while source is not None and (before := source.producer()) is not None and before.op_type == "Reshape":
            source = before.inputs[0]
            if source is not None and source.shape is not None and source.shape == node.outputs[0].shape:
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                break


def _transpose_when_stored(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a transposed weight by a weight that lies transposed."""
    weight = node.inputs[0] if node.op_type == "Transpose" else None
    if weight is None or not weight.is_initializer() or not is_weight(weight) or len(weight.shape or ()) != 2:
        return
    assert weight.name is not None
    assert weight.shape is not None
    stored = ir.Value(name=weight.name, shape=ir.Shape(reversed(weight.shape)), type=weight.type)
    stored.meta["transposed"] = True
    ir.convenience.replace_all_uses_with(node.outputs[0], stored)
    graph.remove(node, safe=True)
    # One that is used both ways keeps its name for the use that is not transposed.
    if weight.uses():
        stored.name = f"{weight.name}.transposed"
    else:
        del graph.initializers[weight.name]
    graph.initializers.add(stored)


def _forget_the_tracer(model: ir.Model) -> None:
    """Stack traces and paths of the machine: equal weights give equal bytes anywhere."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
