"""The matrices of an ONNX export, read from its files as numbers: what torch must hold to compute the same."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor

from ..packed import PackedTensor, unpack
from .graph import EMBED_TOKENS
from .onnx_data import read_array
from .onnx_forms import from_blocks
from .onnx_packed import multiplies_packed, read_packed, value_type
from .onnx_table import read_table
from .reference import ROUNDING_OF, Reference, Rounding

Value = TypeVar("Value")
Read = Callable[[], NDArray[np.float32]]


class LazyMapping(Mapping[str, Value]):
    """Read when they are asked for, each time: all of them may be more than the memory holds."""

    def __init__(self, read: Mapping[str, Callable[[], Value]]) -> None:
        self._read = read

    def __getitem__(self, name: str) -> Value:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def stored_reference(folder: Path, table: str) -> Reference:
    """What torch must hold and round to compute what the files compute. table: the path of the token embeddings."""
    weights: dict[str, Callable[[], Tensor]] = {}
    rounding: dict[str, Rounding] = {}
    graphs: dict[str, list[str]] = {}
    packed: dict[str, Callable[[], PackedTensor]] = {}
    for file in sorted(folder.glob("*.onnx")):
        graph, names = ir.load(file).graph, graphs.setdefault(file.stem, [])
        for node in graph:
            if (matrix := _matrix(graph, node)) is not None:
                name, rounding[name], read = matrix
                weights[f"{name}.weight"] = partial(_as_tensor, read)
                names.append(name)
        packed |= {str(node.name): partial(read_packed, node) for node in graph if multiplies_packed(node)}
        stored = graph.initializers.get(f"{table}.weight") if file.stem == EMBED_TOKENS else None
        if stored is not None and stored.dtype != ir.DataType.FLOAT:
            weights[f"{table}.weight"] = partial(_as_tensor, partial(read_table, graph, table))
    return Reference(LazyMapping(weights), rounding, graphs, LazyMapping(packed))


def _as_tensor(read: Read) -> Tensor:
    return torch.from_numpy(read())


def _matrix(graph: ir.Graph, node: ir.Node) -> tuple[str, Rounding, Read] | None:
    """Name, rounding of what is multiplied with it, and numbers, (rows, columns); None where it is as the model's."""
    name = str(node.name)
    if multiplies_packed(node):
        return name, ROUNDING_OF[value_type(node)], lambda: unpack(read_packed(node))
    if node.op_type == "MatMulNBits":
        part = partial(_read, graph, name)
        sizes = node.attributes["K"].as_int(), node.attributes["bits"].as_int()
        return name, "int8 blocks", lambda: from_blocks(part("codes"), part("scales"), *sizes)
    if node.op_type == "MatMulInteger":
        return name, "uint8 tensor", lambda: _read(graph, name, "codes").T * _read(graph, name, "scales")[:, None]
    source = node.inputs[1] if node.op_type == "MatMul" else None
    cast = source.producer() if source is not None else None
    halves = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if halves is not None and halves.is_initializer():
        name = str(halves.name).removesuffix(".weight")
        return name, "none", lambda: _read(graph, name, "weight").T.astype(np.float32)
    return None


def _read(graph: ir.Graph, name: str, part: str) -> NDArray[Any]:
    tensor = graph.initializers[f"{name}.{part}"].const_value
    assert tensor is not None
    return read_array(tensor)
