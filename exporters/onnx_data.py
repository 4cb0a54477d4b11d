"""The weights of an ONNX graph in the file beside it, written as they come and read again one by one.

So no more than one of them is in memory, and a protobuf never reaches its 2 GB.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

# Smaller ones stay in the graph, where onnxruntime folds them.
_SMALLEST = 1024
# Pages of a weight that was copied are given back (kernels/csrc), and no other weight lies in them.
_ALIGNMENT = 4096


class DataFile:
    """GRAPH.onnx_data, while it is written."""

    def __init__(self, graph: Path) -> None:
        self._file = graph.with_name(f"{graph.name}_data")
        self._stream = self._file.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        empty = self._stream.tell() == 0
        self._stream.close()
        if empty:
            self._file.unlink()

    def add(self, name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The tensor as its graph will hold it: where it lies in the file, or itself if it is small."""
        if tensor.nbytes < _SMALLEST:
            return ir.serde.deserialize_tensor(ir.serde.serialize_tensor(tensor))
        start = -(-self._stream.tell() // _ALIGNMENT) * _ALIGNMENT
        self._stream.seek(start)
        self._stream.write(tensor.tobytes())
        return ir.ExternalTensor(
            self._file.name,
            start,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self._file.parent,
        )


def read_bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """What a weight of a graph is stored as. Copied, so that no page of the file stays mapped."""
    if isinstance(tensor, ir.ExternalTensor):
        return np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=tensor.offset or 0)
    return np.frombuffer(tensor.tobytes(), np.uint8)


def read_array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """The numbers of a weight of a graph, in its shape; no type of less than a byte."""
    return read_bytes(tensor).view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
