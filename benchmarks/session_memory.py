"""The memory that onnxruntime takes at its peak to load a file of packed weights and to multiply with them once.

A process of its own is measured as a whole: Python, onnxruntime, the pages of the file and the kernels' copy of them.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from contenders import Stack, ours
from onnxscript import ir

from slimdeploy.exporters.onnx_data import DataFile
from slimdeploy.exporters.onnx_forms import Product
from slimdeploy.exporters.onnx_packed import put_packed
from slimdeploy.kernels.library import library_file
from slimdeploy.packed import ValueType

OPSET = 21
PROGRAM = Path(__file__).parent / "programs" / "session_peak.py"


def write_model(folder: Path, stack: Stack, values: ValueType, pattern: str, rng: np.random.Generator) -> Path:
    """A chain of layers with packed weights in a file beside it, together as large as the stack."""
    weights = ours.RandomWeights(stack.size, values, pattern, rng)
    blocks = weights.blocks()
    layers = [weights.packed(blocks)]
    while sum(layer.bytes for layer in layers) < stack.least_bytes:
        layers.append(weights.packed(blocks))
    model = _chain(stack.size, len(layers))
    file = folder / "packed.onnx"
    with DataFile(file) as data:
        for number, (node, layer) in enumerate(zip(list(model.graph), layers, strict=True)):
            put_packed(Product(model, node, f"layer_{number}", data.add), layer)
        ir.save(model, file)
    return file


def _chain(size: int, layers: int) -> ir.Model:
    """MatMul nodes whose weights take no memory: they only stand where the packed ones will."""
    nothing = np.broadcast_to(np.float32(0), (size, size))
    floats, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", size])
    inputs = last = ir.Value(name="x", type=floats, shape=shape)
    nodes, placeholders = [], []
    for number in range(layers):
        name = f"layer_{number}.weight"
        weight = ir.Value(
            name=name, type=floats, shape=ir.Shape(nothing.shape), const_value=ir.Tensor(nothing, name=name)
        )
        node = ir.node("MatMul", [last, weight])
        last = node.outputs[0]
        last.type, last.shape = floats, shape
        nodes.append(node)
        placeholders.append(weight)
    last.name = "y"
    graph = ir.Graph([inputs], [last], nodes=nodes, initializers=placeholders, opset_imports={"": OPSET}, name="chain")
    return ir.Model(graph, ir_version=10)


def file_bytes(model: Path) -> int:
    """Of the graph and of the weights beside it."""
    return sum(part.stat().st_size for part in model.parent.glob(f"{model.name}*"))


def peak_bytes(model: Path) -> int:
    command = [sys.executable, str(PROGRAM), str(model), str(library_file())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
