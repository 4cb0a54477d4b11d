"""The engines that are compared: each file makes stacks of square matrices, every one with random contents of its own.

The matrices are made as stored codes at once, since time does not depend on their values. Contents are distinct because
engines notice equal ones: onnxruntime keeps one packed buffer for them, which then measures far too fast.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """size: rows and columns of every matrix. least_bytes: what a stack takes together, at least."""

    size: int
    least_bytes: int

    def chunks(self, layer_bytes: int, layers_per_chunk: int) -> int:
        return -(-self.least_bytes // (layer_bytes * layers_per_chunk))
