"""Matrices quantised by onnxruntime's own tools: dynamic int8, and MatMulNBits in blocks of 128 columns.

What users of onnxruntime have today; packed weights are compared with it. The head stays at eight bits in both.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor

from .onnx_edit import multiplied
from .onnx_table import TokenTable
from .reference import Reference, Rounding

Method = Literal["dynamic", "blocks"]
BLOCK = 128
# The products sum 8-bit integers, as our own kernels do.
_ACCURACY_LEVEL = 4


class Quantized:
    """names: of the matrices. head: the one that gives the logits."""

    def __init__(self, method: Method, names: Iterable[str], head: str, table: TokenTable) -> None:
        self._method = method
        self._bits = {name: 4 if method == "blocks" and name != head else 8 for name in names}
        self._table = table
        self._stored: dict[str, Tensor] = {}

    def store(self, model: ir.Model) -> ir.Model:
        found = {name: node for node in model.graph if (name := multiplied(node)) in self._bits}
        nodes = {name: str(node.name) for name, node in found.items()}
        columns = {name: _weight(node).shape.numpy()[0] for name, node in found.items()}
        if nodes:
            with tempfile.TemporaryDirectory() as folder, _quiet():
                file = Path(folder) / "model.onnx"
                # By way of a file, because a protobuf in memory ends at 2 GB.
                ir.save(model, file, external_data="model.onnx_data")
                quantize = _quantize_dynamically if self._method == "dynamic" else self._quantize_blocks
                model = ir.from_proto(quantize(file, nodes))
            # The last block of a row is filled up.
            self._stored |= {f"{name}.weight": self._read(model.graph, name)[:, : columns[name]] for name in nodes}
        self._table.store(model.graph)
        return model

    def reference(self) -> Reference:
        assert len(self._stored) == len(self._bits), "every matrix is multiplied with in some graph"
        rounding: Rounding = "uint8 tensor" if self._method == "dynamic" else "int8 blocks"
        return Reference({**self._stored, **self._table.weights()}, dict.fromkeys(self._bits, rounding))

    def _quantize_blocks(self, file: Path, nodes: Mapping[str, str]) -> onnx.ModelProto:
        from onnxruntime.quantization import matmul_nbits_quantizer

        tools: Any = matmul_nbits_quantizer  # it has types in some places only
        model = onnx.load(file)
        for bits in sorted({self._bits[name] for name in nodes}):
            chosen = {node for name, node in nodes.items() if self._bits[name] == bits}
            quantizer = tools.MatMulNBitsQuantizer(
                model,
                bits=bits,
                block_size=BLOCK,
                is_symmetric=True,
                accuracy_level=_ACCURACY_LEVEL,
                nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
            )
            quantizer.process()
            model = quantizer.model.model
        assert isinstance(model, onnx.ModelProto)
        return model

    def _read(self, graph: ir.Graph, name: str) -> Tensor:
        """The weight that was stored, (rows, columns), as float32."""
        if self._method == "dynamic":
            codes, scales, zero = (
                _array(graph, f"{name}.weight_{part}").astype(np.float32)
                for part in ("quantized", "scale", "zero_point")
            )
            return torch.from_numpy(((codes - zero) * scales).T.copy())
        bits = self._bits[name]
        packed, scales = _array(graph, f"{name}.weight_Q{bits}"), _array(graph, f"{name}.weight_scales")
        codes = packed if bits == 8 else np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
        weight = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*codes.shape[:2], 1)
        return torch.from_numpy(weight.reshape(len(codes), -1))


def _quantize_dynamically(file: Path, nodes: Mapping[str, str]) -> onnx.ModelProto:
    from onnxruntime import quantization

    tools: Any = quantization  # it has no types
    target = file.with_name("quantized.onnx")
    tools.quantize_dynamic(
        file,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=list(nodes.values()),
        per_channel=True,
        weight_type=tools.QuantType.QInt8,
        use_external_data_format=True,
    )
    return onnx.load(target)


def _weight(node: ir.Node) -> ir.TensorProtocol:
    """What a node multiplies with, (columns, rows)."""
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    return node.inputs[1].const_value


def _array(graph: ir.Graph, name: str) -> NDArray[Any]:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools log to the root logger, and give it a handler of its own where it has none."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.addHandler(logging.NullHandler())
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
