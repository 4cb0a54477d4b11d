"""Packed weights in an ONNX graph: SparseLinear and DenseLinear nodes in place of multiplications, and back again.

The packed arrays are the nodes' inputs, byte for byte as docs/packed-format.md has them; ONNX's own types tell what the
values are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import ir

from ..errors import ExportError
from ..kernels.operators import DOMAIN, VERSION
from ..packed import Encoding, PackedTensor, ValueType
from ..packed_tensor import ALL_KEPT, VALUE_DTYPES
from .onnx_data import read_bytes
from .onnx_forms import Product
from .onnx_functions import DENSE, SPARSE, function_of
from .packing import pack_smallest

_TYPES: Final[Mapping[ValueType, ir.DataType]] = {
    "bf16": ir.DataType.BFLOAT16,
    "fp16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
}
# The functions point at zeros behind the kept weights, twice as far as there are weights, with 32 bits.
_MOST_KEPT: Final = 2**30 - 1


@dataclass(frozen=True)
class Packed:
    """Without the zeros, or all of them where a mask would not pay; multiplied by our operators."""

    encoding: Encoding
    pattern: str

    def store(self, product: Product, weight: NDArray[np.float32]) -> None:
        put_packed(product, pack_smallest(weight, self.encoding, self.pattern))


def put_packed(product: Product, packed: PackedTensor) -> None:
    """Multiply with a packed weight; the function that stands in for the operator comes with it."""
    kind, values = _kind(packed), packed.encoding.values
    inputs = [product.weight(part, tensor) for part, tensor in _tensors(packed)]
    attributes: dict[str, Any] = {"columns": packed.columns, "group": packed.encoding.group, "pattern": packed.pattern}
    product.become(ir.node(kind, [product.x, *inputs], attributes, domain=DOMAIN, name=product.name))
    function = function_of(kind, values, product.model.graph.opset_imports[""])
    there = product.model.functions.setdefault(function.identifier(), function)
    # One function serves a whole file; int8 and int4 have the same one.
    assert len(there) == len(function), f"{product.name} is stored as {values} beside other types"
    product.model.graph.opset_imports[DOMAIN] = VERSION


def multiplies_packed(node: ir.Node) -> bool:
    """Whether `put_packed` made it."""
    return node.domain == DOMAIN and node.op_type in (SPARSE, DENSE)


def _kind(packed: PackedTensor) -> str:
    return DENSE if packed.pattern == ALL_KEPT else SPARSE


def _tensors(packed: PackedTensor) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The node's inputs behind x. Empty arrays are left out."""
    values = _TYPES[packed.encoding.values]
    if packed.pattern != ALL_KEPT:
        if packed.kept > _MOST_KEPT:
            raise ExportError(
                f"a matrix of {packed.rows} x {packed.columns} keeps {packed.kept} weights, more than the {_MOST_KEPT} "
                "that a SparseLinear node can index; set export.onnx.weights = 'dense-int8'"
            )
        yield "mask", _tensor(ir.DataType.UINT8, packed.mask.shape, packed.mask)
    yield "values", _tensor(values, (packed.kept,), packed.values)
    if packed.scales.size:
        yield "scales", _tensor(ir.DataType.BFLOAT16, packed.scales.shape, packed.scales)


def _tensor(dtype: ir.DataType, shape: tuple[int, ...], array: NDArray[Any]) -> ir.TensorProtocol:
    proto = onnx.TensorProto(data_type=int(dtype), dims=shape, raw_data=array.tobytes())
    return ir.serde.deserialize_tensor(proto)


def value_type(node: ir.Node) -> ValueType:
    """Of the weights that a node of ours multiplies with."""
    values = node.inputs[1 if node.op_type == DENSE else 2]
    assert values is not None
    return next(name for name, dtype in _TYPES.items() if dtype == values.dtype)


def read_packed(node: ir.Node) -> PackedTensor:
    """What `put_packed` made a node of. Raises ArtifactError for one that is not valid."""
    tensors = {}
    for value in node.inputs[1:]:
        assert value is not None
        assert value.const_value is not None
        tensors[str(value.name).rpartition(".")[2]] = value.const_value
    kind = value_type(node)
    columns, group = node.attributes["columns"].as_int(), node.attributes["group"].as_int()
    arrays = {part: read_bytes(tensor) for part, tensor in tensors.items()}
    rows = tensors["mask"].shape.numpy()[0] if "mask" in tensors else tensors["values"].size // columns
    mask = arrays.get("mask", np.empty(0, np.uint8))
    scales = arrays.get("scales", np.empty(0, np.uint8)).view(np.uint16)
    packed = PackedTensor(
        rows,
        columns,
        Encoding(kind, group),
        node.attributes["pattern"].as_string(),
        mask.reshape(rows, -1),
        arrays["values"].view(VALUE_DTYPES[kind]),
        scales.reshape(rows, -1),
    )
    packed.validate(str(node.name))
    return packed
