"""The model-local ONNX functions SparseLinear and DenseLinear: y = x W^T for packed weights, in standard operators.

They bear the names of our custom operators. Where the operator library is registered its kernels run; anywhere else
onnxruntime inlines the function, folds all that depends on weights alone when it loads the model, and is left with a
plain MatMul. What they compute is docs/packed-format.md's definition: kernels and functions give the same answers.

Loading without the library takes about 33 bytes for every weight of a file at its peak, because onnxruntime keeps what
it folds until it has folded everything. Index arithmetic is therefore in 32 bits and by bytes of the mask, not by bits.
"""

from typing import Any

import numpy as np
from onnxscript import ir

from ..kernels.operators import DOMAIN
from ..packed import ValueType

SPARSE = "SparseLinear"
DENSE = "DenseLinear"
ATTRIBUTES = {"columns": ir.AttributeType.INT, "group": ir.AttributeType.INT, "pattern": ir.AttributeType.STRING}

# For every value of a byte of the mask: its bits, and how many bits are set before each of them.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_PLACES = (_BITS.cumsum(axis=1) - _BITS).astype(np.int32)


def function_of(kind: str, values: ValueType, opset: int) -> ir.Function:
    """The function SPARSE or DENSE for weights of one value type; int8 and int4 share theirs.

    Inputs: x (..., columns) float32, mask (SPARSE only), values, and scales for integer weights: see docs.
    """
    body = _Body()
    inputs = {name: ir.Value(name=name) for name in ("x", "mask", "values", "scales")}
    x, mask, packed, scales = inputs.values()
    stored = body("Cast", packed, to=ir.DataType.INT8) if values in ("int8", "int4") else packed
    weight = _spread(body, mask, stored) if kind == SPARSE else body("Reshape", stored, _whole_rows(body))
    # Transposed while its elements are small, and then widened: see above.
    weight = body("Cast", body("Transpose", weight, perm=[1, 0]), to=ir.DataType.FLOAT)
    match values:
        case "int8" | "int4":
            y = _times_rounded_to_int8(body, x, _scaled(body, weight, scales))
        case "bf16":
            rounded = body("Cast", body("Cast", x, to=ir.DataType.BFLOAT16), to=ir.DataType.FLOAT)
            y = body("MatMul", rounded, weight)
        case "fp16":
            y = body("MatMul", x, weight)
    y.name = "y"
    used = [value for name, value in inputs.items() if name != "mask" or kind == SPARSE]
    graph = ir.Graph(used, [y], nodes=body.nodes, opset_imports={"": opset}, name=kind)
    attributes = [ir.Attr(name, type_, None) for name, type_ in ATTRIBUTES.items()]
    return ir.Function(DOMAIN, kind, graph=graph, attributes=attributes)


class _Body:
    """Nodes of a function, in order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: Any, dtype: Any = np.int64) -> ir.Value:
        return self("Constant", value=ir.tensor(np.asarray(array, dtype)))

    def attribute(self, name: str) -> ir.Value:
        """An attribute of the calling node, as a number."""
        node = ir.Node("", "Constant", [], [ir.RefAttr("value_int", name, ir.AttributeType.INT)])
        self.nodes.append(node)
        return node.outputs[0]


def _whole_rows(body: _Body) -> ir.Value:
    """The shape (all rows, columns)."""
    columns = body("Reshape", body.attribute("columns"), body.constant([1]))
    return body("Concat", body.constant([-1]), columns, axis=0)


def _spread(body: _Body, mask: ir.Value, kept: ir.Value) -> ir.Value:
    """The kept weights in their places, (rows, columns), zeros elsewhere.

    A weight's index among the kept ones is the number of bits set before its byte plus those before it in the byte.
    What is not kept points behind the last of them, where zeros stand.
    """
    in_bytes = body("Cast", mask, to=ir.DataType.INT32)
    counts = body("Gather", body.constant(_BITS.sum(axis=1), np.int32), in_bytes)
    before = body("CumSum", body("Reshape", counts, body.constant([-1])), body.constant(0, np.int32), exclusive=1)
    before = body("Reshape", before, body("Concat", body("Shape", mask), body.constant([1]), axis=0))
    count = body("Shape", kept)
    none_kept = body("Cast", count, to=ir.DataType.INT32)
    places = body("Where", body.constant(_BITS, np.bool_), body.constant(_PLACES, np.int32), none_kept)
    index = body("Add", before, body("Gather", places, in_bytes))
    zeros = body("ConstantOfShape", body("Add", count, body.constant([1])))
    stock = body("Concat", kept, body("CastLike", zeros, kept), axis=0)
    padded = body("Reshape", body("Gather", stock, index), body.constant([0, -1]))
    columns = body("Reshape", body.attribute("columns"), body.constant([1]))
    return body("Slice", padded, body.constant([0]), columns, body.constant([1]))


def _scaled(body: _Body, codes: ir.Value, scales: ir.Value) -> ir.Value:
    """Codes (columns, rows) times the scale of their group; group 0 is a whole row."""
    columns, group = body.attribute("columns"), body.attribute("group")
    width = body("Where", body("Equal", group, body.constant(0)), columns, group)
    groups = body("Div", body("Range", body.constant(0), columns, body.constant(1)), width)
    by_group = body("Transpose", body("Cast", scales, to=ir.DataType.FLOAT), perm=[1, 0])
    return body("Mul", codes, body("Gather", by_group, groups))


def _times_rounded_to_int8(body: _Body, x: ir.Value, weight: ir.Value) -> ir.Value:
    """x W^T with every row of x rounded to 255 steps between its largest magnitude and the negative of that."""
    largest = body("ReduceMax", body("Abs", x), body.constant([-1]), keepdims=1)
    largest = body("Max", largest, body.constant(1e-30, np.float32))
    most = body.constant(127, np.float32)
    codes = body("Round", body("Mul", x, body("Div", most, largest)))
    return body("Mul", body("MatMul", codes, weight), body("Div", largest, most))
