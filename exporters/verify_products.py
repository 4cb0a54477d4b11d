"""Every packed matrix of an ONNX export, multiplied with the activations that it has there, against float64.

A whole graph can be compared with torch only loosely, because rounding makes much of a small difference; see
`reference`. A product of its own is compared with the same activations, and closely.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ExportError
from ..kernels import reference
from ..kernels.operators import CACHE_ROWS, register_operators
from ..packed import PackedTensor, ValueType

MAX_RELATIVE_ERROR: Final[Mapping[ValueType, float]] = {"bf16": 5e-3, "fp16": 1e-5, "int8": 1e-5, "int4": 1e-5}
"""||y - reference|| / ||reference||; bf16 products are rounded once more on some CPUs."""


def compare_products(file: Path, packed: Mapping[str, PackedTensor], inputs: Mapping[str, NDArray[Any]]) -> float:
    """Largest relative error of a packed node of one graph; 0 where the graph has none.

    Raises ExportError that names the first one whose error is too large.
    """
    graph = onnx.load(file, load_external_data=False)
    nodes = [node for node in graph.graph.node if node.name in packed]
    known = {output.name for output in graph.graph.output}
    seen = [name for node in nodes for name in (node.input[0], node.output[0]) if name not in known]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(seen))
    # In the same folder, because there lie the weights.
    opened = file.with_name(f".{file.name}.products")
    try:
        onnx.save(graph, opened)
        values = _run(opened, inputs)
    finally:
        opened.unlink(missing_ok=True)
    return max(
        (_error(node.name, packed[node.name], values[node.input[0]], values[node.output[0]]) for node in nodes),
        default=0.0,
    )


def _run(file: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """All outputs of a graph, by name. inputs: but for the past, which is empty, and its rows."""
    import onnxruntime  # absent where only the other formats are exported

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    register_operators(options)
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    missing = {node.name: node.shape for node in session.get_inputs() if node.name not in inputs}
    empty = {n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in missing.items() if n != CACHE_ROWS}
    in_order = {n: np.empty(0, np.int64) for n in missing if n == CACHE_ROWS}
    values = session.run(None, {**inputs, **empty, **in_order})
    return dict(zip([node.name for node in session.get_outputs()], values, strict=True))


def _error(name: str, packed: PackedTensor, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    expected = reference.linear(packed, x)
    error = float(np.linalg.norm(y - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not error <= MAX_RELATIVE_ERROR[packed.encoding.values]:  # also where it is no number
        raise ExportError(
            f"the packed layer {name} differs from its product in float64 by a relative error of {error:.2g}; "
            "set export.onnx.weights = 'dense-fp32' and report this model"
        )
    return error
