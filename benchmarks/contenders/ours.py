"""Our kernels through slimdeploy.kernels.library, on packed weights of random contents."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rounds import Call, Contender, Floats, Prepare

from slimdeploy.kernels.library import Linear
from slimdeploy.packed import Encoding, PackedTensor, ValueType
from slimdeploy.quantize import to_bf16

from . import Stack

ENCODINGS: dict[ValueType, Encoding] = {
    "bf16": Encoding("bf16"),
    "int8": Encoding("int8", 128),
    "int4": Encoding("int4", 128),
}
PATTERNS = ("dense", "50%", "60%", "70%", "32:64", "26:64", "20:64")
"""A percentage is the sparsity of an unstructured mask."""

SMALLEST = 128
"""Rows and columns of a layer whose time is that of the call."""

_INT4_PAIRS = np.array([(high & 15) << 4 | (low & 15) for high in range(-7, 8) for low in range(-7, 8)], np.uint8)


@dataclass(frozen=True)
class RandomWeights:
    """Makes packed matrices of one kind, each different."""

    size: int
    values: ValueType
    pattern: str
    rng: np.random.Generator

    def packed(self, blocks: NDArray[np.uint64]) -> PackedTensor:
        """blocks: the mask of each 64 weights for an N:M pattern; they are shuffled."""
        name, mask, kept = self._mask(blocks)
        encoding = ENCODINGS[self.values]
        groups = self.size // encoding.group if encoding.group else 0
        scales = to_bf16(self.rng.uniform(0.5, 1.5, (self.size, groups)).astype(np.float32))
        return PackedTensor(self.size, self.size, encoding, name, mask, self._values(kept), scales)

    def blocks(self) -> NDArray[np.uint64]:
        """For N:M: as many random blocks as the matrix has. Otherwise none."""
        if ":" not in self.pattern:
            return np.empty(0, np.uint64)
        kept = int(self.pattern.split(":")[0])
        order = self.rng.random((self.size * self.size // 64, 64), np.float32).argsort(axis=1)
        return np.packbits(order < kept, axis=1, bitorder="little").view(np.uint64)[:, 0]

    def _mask(self, blocks: NDArray[np.uint64]) -> tuple[str, NDArray[np.uint8], int]:
        if self.pattern == "dense":
            return "dense", np.empty((self.size, 0), np.uint8), self.size**2
        if ":" in self.pattern:
            mask = self.rng.permutation(blocks).view(np.uint8).reshape(self.size, -1)
            return self.pattern, mask, len(blocks) * int(self.pattern.split(":")[0])
        sparsity = float(self.pattern.rstrip("%")) / 100
        kept = self.rng.integers(0, 2**16, (self.size, self.size), np.uint16) >= round(sparsity * 2**16)
        return "unstructured", np.packbits(kept, axis=1, bitorder="little"), int(kept.sum())

    def _values(self, kept: int) -> NDArray[np.uint8] | NDArray[np.int8] | NDArray[np.uint16]:
        match self.values:
            case "int8":
                return self.rng.integers(-127, 128, kept, np.int8)
            case "int4":
                pairs = _INT4_PAIRS[self.rng.integers(0, len(_INT4_PAIRS), -(-kept // 2), np.uint8)]
                if kept % 2:
                    pairs[-1] &= 15
                return pairs
            case _:
                bits = self.rng.integers(0, 2**16, kept, np.uint16)
                return (bits & 0x80FF) | 0x3C00  # either sign, 2^-7 to 2^-5


def linear(stack: Stack, values: ValueType, pattern: str, rng: np.random.Generator) -> Contender:
    """In the layout that the library chooses for such weights on this machine."""
    weights = RandomWeights(stack.size, values, pattern, rng)
    blocks = weights.blocks()
    layers = [Linear(weights.packed(blocks))]
    while sum(layer.bytes for layer in layers) < stack.least_bytes:
        layers.append(Linear(weights.packed(blocks)))
    output = _outputs(stack.size)
    chunks = [_layer(layer, output) for layer in layers]
    return Contender(f"ours {values} {pattern}", layers[0].bytes, 1, chunks, layers[0].layout)


def call_from_python(rng: np.random.Generator) -> Contender:
    """The smallest layer: what a call through ctypes costs, which is in every figure of ours."""
    layer = Linear(RandomWeights(SMALLEST, "int8", "dense", rng).packed(np.empty(0, np.uint64)))
    return Contender("a call of ours", layer.bytes, 1, [_layer(layer, _outputs(layer.rows))] * 1000)


def _outputs(rows: int) -> Callable[[int], Floats]:
    """One output for all layers, as onnxruntime's layers share theirs: fresh memory takes 20 ms of prefill to map."""
    return cache(lambda count: np.empty((count, rows), np.float32))


def _layer(layer: Linear, output: Callable[[int], Floats]) -> Prepare:
    def prepare(x: Floats, threads: int) -> Call:
        y = output(len(x))
        from_address, to_address = x.ctypes.data, y.ctypes.data

        def run() -> Floats:
            layer.run(from_address, len(x), to_address, threads)
            return y

        return run

    return prepare
