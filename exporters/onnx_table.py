"""The table of token embeddings in an ONNX graph, in a narrower type: rows are gathered, and then widened.

A table is read a row per token and never multiplied, so that a narrow one costs no time and needs no kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor

from ..errors import ExportError
from ..model import Model
from ..packed import Encoding, pack
from ..packed_tensor import ALL_KEPT
from ..quantize import to_bf16
from .onnx_edit import add_initializer, replace

TableType = Literal["float16", "bfloat16", "int8"]


@dataclass(frozen=True)
class TokenTable:
    """rows: (tokens, hidden), narrow. scales: one per token, (tokens, 1), where the rows are int8."""

    name: str
    rows: NDArray[Any]
    scales: NDArray[Any] | None = None

    def weights(self) -> Mapping[str, Tensor]:
        """What the table holds, by the name of its parameter."""
        rows = self.rows.astype(np.float32)
        if self.scales is not None:
            rows = rows * self.scales.astype(np.float32)
        return {f"{self.name}.weight": torch.from_numpy(rows)}

    def store(self, graph: ir.Graph) -> None:
        """Replace the table in the graph that has it; any other graph stays as it is."""
        for node in list(graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is not None and table.is_initializer() and table.name == f"{self.name}.weight":
                rows = _gathered(graph, node, f"{self.name}.weight", self.rows)
                if self.scales is not None:
                    scales = _gathered(graph, node, f"{self.name}.scales", self.scales)
                    product = ir.node("Mul", [rows, scales])
                    graph.insert_before(node, product)
                    rows = product.outputs[0]
                replace(graph, node, rows)


def _gathered(graph: ir.Graph, before: ir.Node, name: str, table: NDArray[Any]) -> ir.Value:
    """The rows of a new table that the node `before` asks for, as float32."""
    stored = add_initializer(graph, name, ir.tensor(table, name=name))
    gather = ir.node("Gather", [stored, before.inputs[1]])
    cast = ir.node("Cast", [gather.outputs[0]], {"to": ir.DataType.FLOAT})
    graph.insert_before(before, [gather, cast])
    return cast.outputs[0]


def token_table(model: Model, as_type: TableType) -> TokenTable:
    """The model's table in another type. Raises ExportError for one beyond the type's range."""
    embeddings = model.pretrained.get_input_embeddings()
    name = next(name for name, module in model.module.named_modules() if module is embeddings)
    weight = embeddings.weight.detach().cpu().numpy()
    match as_type:
        case "float16":
            with np.errstate(over="ignore"):
                rows = weight.astype(np.float16)
            if not np.isfinite(rows).all():
                raise ExportError(
                    f"{name} holds {np.abs(weight).max():g}, beyond the range of float16; "
                    "set export.onnx.weights = 'packed-bf16' or 'dense-fp32'"
                )
            return TokenTable(name, rows)
        case "bfloat16":
            return TokenTable(name, to_bf16(weight).view(ml_dtypes.bfloat16))
        case "int8":
            packed = pack(weight, Encoding("int8"), ALL_KEPT)
            return TokenTable(name, packed.values.reshape(weight.shape), packed.scales.view(ml_dtypes.bfloat16))
        case _:
            assert_never(as_type)
