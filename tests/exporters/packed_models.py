"""ONNX models of nothing but multiplications with packed weights, with and without the operator library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxscript import ir

from slimdeploy.exporters.onnx_forms import Product
from slimdeploy.exporters.onnx_packed import put_packed
from slimdeploy.packed import PackedTensor

FLOAT = ir.TensorType(ir.DataType.FLOAT)
OPSET = 23


def packed_model(weights: Mapping[str, PackedTensor]) -> ir.Model:
    """x (batch, sequence, columns) -> a product with each weight, (batch, sequence, rows), named as the weight."""
    columns = next(iter(weights.values())).columns
    x = ir.Value(name="x", shape=ir.Shape(["batch", "sequence", columns]), type=FLOAT)
    nodes, dense = [], []
    for name, packed in weights.items():
        stored = ir.tensor(np.zeros((columns, packed.rows), np.float32), name=f"{name}.weight")
        dense.append(ir.Value(name=stored.name, shape=stored.shape, type=FLOAT, const_value=stored))
        nodes.append(ir.node("MatMul", [x, dense[-1]]))
        output = nodes[-1].outputs[0]
        output.name, output.type = name, FLOAT
        output.shape = ir.Shape(["batch", "sequence", packed.rows])
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=dense, opset_imports={"": OPSET}, name="products")
    model = ir.Model(graph, ir_version=10)
    for node, (name, packed) in zip(nodes, weights.items(), strict=True):
        put_packed(Product(model, node, name, lambda _, tensor: tensor), packed)
    assert {node.name for node in model.graph} == set(weights)
    return model


def save(model: ir.Model, file: Path) -> Path:
    """With the weights beside the graph, as an export has them."""
    ir.save(model, file, external_data=f"{file.name}_data", size_threshold_bytes=0)
    return file


def session(file: Path, library: Path | None = None, threads: int = 1, profile: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(file, options)  # type: ignore[attr-defined]


def run(file: Path, x: NDArray[np.float32], library: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """The products by the names of their weights."""
    opened = session(file, library)
    return dict(zip([node.name for node in opened.get_outputs()], opened.run(None, {"x": x}), strict=True))


def relative_error(found: NDArray[Any], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
