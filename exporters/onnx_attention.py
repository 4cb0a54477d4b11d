"""Attention by our own operator in place of onnxruntime's, where it is causal and nothing more.

Ours is the faster. Both have one name, one meaning and the same inputs and outputs, but for one input, `cache_rows`.
A model-local ONNX function that consists of onnxruntime's stands in for it wherever our operators are not registered.
"""

from typing import Final

from onnxscript import ir

from ..kernels.operators import CACHE_ROWS, DOMAIN, VERSION
from .graph import BATCH_SIZE, CACHE_ROWS_SIZE

ATTENTION: Final = "GroupQueryAttention"
_THEIRS: Final = "com.microsoft"
_INPUTS = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length")
_OUTPUTS = ("output", "present_key", "present_value")
_ATTRIBUTES = {
    "num_heads": ir.AttributeType.INT,
    "kv_num_heads": ir.AttributeType.INT,
    "scale": ir.AttributeType.FLOAT,
}


def use_own_attention(model: ir.Model) -> None:
    """In all layers or in none, for onnxruntime's knows no rows. Windows, biases and caps are left to it."""
    theirs = [node for node in model.graph if (node.domain, node.op_type) == (_THEIRS, ATTENTION)]
    if not theirs or not all(map(_is_plain, theirs)):
        keep_their_attention(model)
        return
    rows = ir.Value(name=CACHE_ROWS, shape=ir.Shape(["sequences"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(rows)
    for node in theirs:
        _become_own(node, rows)
    function = _function(model.graph.opset_imports[""])
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = VERSION


def keep_their_attention(model: ir.Model) -> None:
    """Caches have a row for each sequence of a batch: transformers.js makes them by the names of their dimensions."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(BATCH_SIZE if _name(size) == CACHE_ROWS_SIZE else size for size in value.shape)


def _name(size: int | ir.SymbolicDim) -> str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else None


def _is_plain(node: ir.Node) -> bool:
    return len(node.inputs) == len(_INPUTS) and node.attributes.keys() == _ATTRIBUTES.keys()


def _become_own(node: ir.Node, rows: ir.Value) -> None:
    node.domain = DOMAIN
    node.resize_inputs(len(_INPUTS) + 1)
    node.replace_input_with(len(_INPUTS), rows)


def _function(opset: int) -> ir.Function:
    inputs = [ir.Value(name=name) for name in _INPUTS]
    attributes = [ir.RefAttr(name, name, type_) for name, type_ in _ATTRIBUTES.items()]
    node = ir.Node(_THEIRS, ATTENTION, inputs, attributes, num_outputs=len(_OUTPUTS))
    for output, name in zip(node.outputs, _OUTPUTS, strict=True):
        output.name = name
    inputs.append(ir.Value(name=CACHE_ROWS))
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, _THEIRS: 1}, name=ATTENTION)
    given = [ir.Attr(name, type_, None) for name, type_ in _ATTRIBUTES.items()]
    return ir.Function(DOMAIN, ATTENTION, graph=graph, attributes=given)
