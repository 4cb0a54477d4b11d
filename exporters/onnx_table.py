"""The table of token embeddings in an ONNX graph: rows are gathered, and then widened.

A table is read a row per token and never multiplied, so that a narrow one costs no time and needs no kernel.
"""

from typing import Any, Literal, assert_never

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from ..quantize import to_bf16
from .onnx_data import DataFile, read_array, read_bytes
from .onnx_edit import add_initializer, replace
from .onnx_forms import Matrix, as_float16, quantized

TableType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
# Columns that share a scale in a table of int4.
_GROUP = 32


def store_table(graph: ir.Graph, name: str, weight: Matrix, as_type: TableType, data: DataFile) -> None:
    """Give the table NAME.weight of a graph, (tokens, hidden), its values.

    Raises ExportError for one beyond the type's range.
    """
    (gather,) = (node for node in graph if node.op_type == "Gather" and node.inputs[0] is _table(graph, name))
    ids = gather.inputs[1]
    assert ids is not None

    def stored(part: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(graph, f"{name}.{part}", data.add(f"{name}.{part}", ir.tensor(array)))

    def gathered(value: ir.Value) -> ir.Value:
        rows = ir.node("Gather", [value, ids])
        cast = ir.node("Cast", rows.outputs, {"to": ir.DataType.FLOAT})
        graph.insert_before(gather, [rows, cast])
        return cast.outputs[0]

    match as_type:
        case "float32":
            gather.replace_input_with(0, stored("weight", weight))
            return
        case "float16":
            rows = gathered(stored("weight", as_float16(name, weight)))
        case "bfloat16":
            rows = gathered(stored("weight", to_bf16(weight).view(ml_dtypes.bfloat16)))
        case "int8":
            codes, scales = quantized(weight, 8, 0)
            factors = (
                gathered(stored("weight", codes)),
                gathered(stored("scales", to_bf16(scales).view(ml_dtypes.bfloat16))),
            )
            product = ir.node("Mul", factors)
            graph.insert_before(gather, product)
            rows = product.outputs[0]
        case "int4":
            codes, scales = quantized(weight, 4, _GROUP)
            inputs = [stored("weight", codes.astype(ml_dtypes.int4)), ids, stored("scales", scales)]
            attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": _GROUP}
            node = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft")
            graph.opset_imports["com.microsoft"] = 1
            graph.insert_before(gather, node)
            rows = node.outputs[0]
        case _:
            assert_never(as_type)
    replace(graph, gather, rows)


def _table(graph: ir.Graph, name: str) -> ir.Value:
    return graph.initializers[f"{name}.weight"]


def read_table(graph: ir.Graph, name: str) -> Matrix:
    """What `store_table` stored, (tokens, hidden), as float32."""
    rows = _table(graph, name).const_value
    assert rows is not None
    if rows.dtype == ir.DataType.INT4:
        packed = read_bytes(rows).view(np.int8)
        codes = np.stack([packed << 4 >> 4, packed >> 4], axis=-1).reshape(rows.shape.numpy())
    else:
        codes = read_array(rows)
    weight: Matrix = codes.astype(np.float32)
    if f"{name}.scales" in graph.initializers:
        tensor = graph.initializers[f"{name}.scales"].const_value
        assert tensor is not None
        scales = read_array(tensor).astype(np.float32)
        weight *= np.repeat(scales, weight.shape[1] // scales.shape[1], axis=1)
    return weight
