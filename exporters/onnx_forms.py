"""The forms in which an ONNX export stores a matrix: what takes the place of a multiplication.

Each reads again what it wrote, in `onnx_stored`. Integer forms of onnxruntime's own are made with the same scales as
ours: what differs between them is the operator.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from ..errors import ExportError
from ..packed_tensor import row_chunks
from ..quantize import LARGEST_CODE, LARGEST_SCALE, from_bf16, quantize
from .onnx_edit import add_initializer, replace

BLOCK: Final = 128
"""Columns that share a scale in MatMulNBits."""
# The products sum 8-bit integers, as our own kernels do.
_ACCURACY_LEVEL: Final = 4
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """y = x W^T: `node` multiplies with the weight NAME.weight, (columns, rows), which has no values yet.

    keep: takes a new weight by its name and gives it as the graph will hold it, as `DataFile.add` does.
    """

    model: ir.Model
    node: ir.Node
    name: str
    keep: Callable[[str, ir.TensorProtocol], ir.TensorProtocol]

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    def weight(self, part: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new weight NAME.part, written."""
        name = f"{self.name}.{part}"
        return add_initializer(self.model.graph, name, self.keep(name, tensor))

    def insert(self, *nodes: ir.Node) -> None:
        """Before the multiplication, in order."""
        self.model.graph.insert_before(self.node, nodes)

    def become(self, *nodes: ir.Node) -> None:
        """Nodes, the last of which puts out y, in place of the multiplication and its weight."""
        weight = self.node.inputs[1]
        assert weight is not None
        self.insert(*nodes)
        replace(self.model.graph, self.node, nodes[-1].outputs[0])
        # A part of the same name took its place already.
        if not weight.uses() and self.model.graph.initializers.get(str(weight.name)) is weight:
            del self.model.graph.initializers[str(weight.name)]


class Form(Protocol):
    """weight: (rows, columns)."""

    @abstractmethod
    def store(self, product: Product, weight: Matrix) -> None: ...


class Float32:
    """Zeros and all, as torch has them."""

    def store(self, product: Product, weight: Matrix) -> None:
        stored = product.weight("weight", ir.tensor(np.ascontiguousarray(weight.T)))
        product.node.replace_input_with(1, stored)


class Float16:
    """Half the file. onnxruntime multiplies no float16 on most CPUs, so it widens the weights when it loads them."""

    def store(self, product: Product, weight: Matrix) -> None:
        stored = product.weight("weight", ir.tensor(np.ascontiguousarray(as_float16(product.name, weight).T)))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        product.insert(cast)
        product.node.replace_input_with(1, cast.outputs[0])


def as_float16(name: str, weight: Matrix) -> NDArray[np.float16]:
    """Raises ExportError for one beyond the type's range."""
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ExportError(
            f"{name} holds {np.abs(weight).max():g}, beyond the range of float16; "
            "set export.onnx.weights = 'packed-bf16' or 'dense-fp32'"
        )
    return halves


@dataclass(frozen=True)
class Blocks:
    """onnxruntime's MatMulNBits: codes of 4 or 8 bits, a scale for every 128 columns."""

    bits: Literal[4, 8]

    def store(self, product: Product, weight: Matrix) -> None:
        rows, columns = weight.shape
        blocks = -(-columns // BLOCK)
        codes, scales = quantized(weight, self.bits, BLOCK)
        # Stored without a sign. The last block is filled up with zeros, which are in the middle.
        middle = 2 ** (self.bits - 1)
        unsigned = np.full((rows, blocks * BLOCK), middle, np.uint8)
        unsigned[:, :columns] = codes.astype(np.int16) + middle
        stored = unsigned if self.bits == 8 else unsigned[:, ::2] | unsigned[:, 1::2] << 4
        attributes = {
            "K": columns, "N": rows, "bits": self.bits, "block_size": BLOCK, "accuracy_level": _ACCURACY_LEVEL
        }  # fmt: skip
        inputs = [
            product.x,
            product.weight("codes", ir.tensor(stored.reshape(rows, blocks, -1))),
            product.weight("scales", ir.tensor(scales)),
        ]
        product.become(ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=product.name))
        product.model.graph.opset_imports["com.microsoft"] = 1


class Dynamic:
    """onnxruntime's dynamic int8: activations get one scale and zero for a whole tensor when they are there."""

    def store(self, product: Product, weight: Matrix) -> None:
        codes, scales = quantized(weight, 8, 0)
        activations, scale, zero = self._quantized(product)
        stored = product.weight("codes", ir.tensor(np.ascontiguousarray(codes.T)))
        sums = ir.node("MatMulInteger", [activations, stored, zero], name=product.name)
        widened = ir.node("Cast", sums.outputs, {"to": ir.DataType.FLOAT})
        both = ir.node("Mul", [scale, product.weight("scales", ir.tensor(scales[:, 0]))])
        product.become(sums, widened, both, ir.node("Mul", [widened.outputs[0], both.outputs[0]]))

    @staticmethod
    def _quantized(product: Product) -> tuple[ir.Value, ...]:
        """x as integers, its scale and its zero; all products with one x share them."""
        for use in product.x.uses():
            if use.node.op_type == "DynamicQuantizeLinear":
                return tuple(use.node.outputs)
        node = ir.node("DynamicQuantizeLinear", [product.x], num_outputs=3)
        product.insert(node)
        return tuple(node.outputs)


def quantized(weight: Matrix, bits: Literal[4, 8], group: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes, and their scales of every `group` columns (0: of a row): see `quantize`.

    Raises ExportError for weights that no scale reaches.
    """
    rows, columns = weight.shape
    largest, top = LARGEST_CODE["int4" if bits == 4 else "int8"], float(np.abs(weight).max())
    if not top <= largest * LARGEST_SCALE:  # also where it is no number
        raise ExportError(f"a weight matrix that holds {top:g} cannot be packed as int{bits}; use 'packed-bf16'")
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, -(-columns // (group or columns))), np.float32)
    for part in row_chunks(rows, columns):
        codes[part], found = quantize(weight[part], largest, group)
        scales[part] = from_bf16(found)
    return codes, scales


def from_blocks(codes: NDArray[np.uint8], scales: NDArray[np.float32], columns: int, bits: int) -> Matrix:
    """The weight that `Blocks` stored, (rows, columns). codes: (rows, blocks, bytes)."""
    if bits == 4:
        codes = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    weight = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*codes.shape[:2], 1)
    return np.ascontiguousarray(weight.reshape(len(codes), -1)[:, :columns])
