"""Packed weights in an ONNX graph: SparseLinear and DenseLinear nodes in place of multiplications, and back again.

The packed arrays are the nodes' inputs, byte for byte as docs/packed-format.md has them; ONNX's own types tell what the
values are. Knows no model of ours: weights are found by the name that they are multiplied under.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import ir

from ..errors import ExportError
from ..kernels.operators import DOMAIN, VERSION
from ..packed import Encoding, PackedTensor, ValueType
from ..packed_tensor import ALL_KEPT, VALUE_DTYPES
from .onnx_edit import add_initializer, multiplied, replace
from .onnx_functions import DENSE, SPARSE, function_of

_TYPES: Final[Mapping[ValueType, ir.DataType]] = {
    "bf16": ir.DataType.BFLOAT16,
    "fp16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
}
# The functions point at zeros behind the kept weights, twice as far as there are weights, with 32 bits.
_MOST_KEPT: Final = 2**30 - 1


def store_packed(model: ir.Model, weights: Mapping[str, PackedTensor]) -> None:
    """Multiply with packed weights wherever `model` multiplies with NAME.weight for a NAME in `weights`.

    The functions behind the new nodes come with them.
    """
    found = {}
    for node in list(model.graph):
        name = multiplied(node)
        if name in weights:
            _replace(model.graph, node, name, weights[name])
            found[name] = weights[name]
    for kind in (SPARSE, DENSE):
        encodings = {packed.encoding.values for packed in found.values() if _kind(packed) == kind}
        if encodings:
            # One function serves a whole file; int8 and int4 have the same one.
            assert len({values.startswith("int") for values in encodings}) == 1, encodings
            function = function_of(kind, sorted(encodings)[0], model.graph.opset_imports[""])
            model.functions[function.identifier()] = function
            model.graph.opset_imports[DOMAIN] = VERSION


def _replace(graph: ir.Graph, node: ir.Node, name: str, packed: PackedTensor) -> None:
    x, weight = node.inputs
    assert x is not None
    assert weight is not None
    inputs = [add_initializer(graph, f"{name}.{part}", tensor) for part, tensor in _tensors(packed)]
    attributes: dict[str, Any] = {"columns": packed.columns, "group": packed.encoding.group, "pattern": packed.pattern}
    linear = ir.node(_kind(packed), [x, *inputs], attributes, domain=DOMAIN, name=name)
    graph.insert_before(node, linear)
    replace(graph, node, linear.outputs[0])
    if not weight.uses():
        del graph.initializers[str(weight.name)]


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


def read_packed(file: Path) -> dict[str, PackedTensor]:
    """The packed weights in a graph, by the names of their nodes. Raises ArtifactError for one that is not valid."""
    weights = {node.name or "": _packed(node) for node in ir.load(file).graph if node.domain == DOMAIN}
    for name, packed in weights.items():
        packed.validate(name)
    return weights


def _packed(node: ir.Node) -> PackedTensor:
    """What `_replace` made a node of."""
    arrays = {}
    for value in node.inputs[1:]:
        assert value is not None
        assert value.const_value is not None
        arrays[str(value.name).rpartition(".")[2]] = value.const_value
    values = arrays["values"]
    kind = next(name for name, dtype in _TYPES.items() if dtype == values.dtype)
    columns, group = node.attributes["columns"].as_int(), node.attributes["group"].as_int()
    rows = arrays["mask"].shape.numpy()[0] if "mask" in arrays else values.size // columns
    none = np.empty((rows, 0))
    return PackedTensor(
        rows,
        columns,
        Encoding(kind, group),
        node.attributes["pattern"].as_string(),
        arrays["mask"].numpy() if "mask" in arrays else none.astype(np.uint8),
        np.frombuffer(values.tobytes(), VALUE_DTYPES[kind]),
        arrays["scales"].numpy().view(np.uint16) if "scales" in arrays else none.astype(np.uint16),
    )
