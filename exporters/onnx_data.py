"""The weights of an ONNX graph in the file beside it, written as they come and read again one by one.

So no more than one of them is in memory, and a protobuf never reaches its 2 GB.
"""

from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from ..errors import ExportError

# Smaller ones stay in the graph, where onnxruntime folds them.
_SMALLEST = 1024
# The kernels give the pages of a weight back when they have copied it; those of a large one hold no other weight.
_LARGE, _PAGE, _LINE = 2**20, 4096, 64


Sums = dict[str, int]
"""A checksum of every weight in the file, by its name."""


class DataFile:
    """GRAPH.onnx_data, while it is written. sums: of what was written so far."""

    def __init__(self, graph: Path) -> None:
        self.sums: Sums = {}
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
        step = _PAGE if tensor.nbytes >= _LARGE else _LINE
        start = -(-self._stream.tell() // step) * step
        self._stream.seek(start)
        contents = tensor.tobytes()
        self._stream.write(contents)
        self.sums[name] = crc32(contents)
        return ir.ExternalTensor(
            self._file.name,
            start,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self._file.parent,
        )


def require_as_written(graph: Path, sums: Sums) -> None:
    """Raises ExportError that names the first weight which is not the same, bit for bit, when it is read again."""
    values = ir.load(graph).graph.initializers
    for name, expected in sums.items():
        tensor = values[name].const_value if name in values else None
        if tensor is None or crc32(read_bytes(tensor).data) != expected:
            raise ExportError(f"the weight {name} is not the same once it is exported and read again; export once more")


def read_bytes(tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """What a weight of a graph is stored as. Copied, so that no page of the file stays mapped."""
    if isinstance(tensor, ir.ExternalTensor):
        return np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=tensor.offset or 0)
    return np.frombuffer(tensor.tobytes(), np.uint8)


def read_array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """The numbers of a weight of a graph, in its shape; no type of less than a byte."""
    return read_bytes(tensor).view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
