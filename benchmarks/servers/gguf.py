"""Writing GGUF, version 3: settings, then tensors, one of which is in memory at a time.

Facts: ggml/include/gguf.h of llama.cpp.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
Kind = Literal["f32", "f16", "bf16"]

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TENSOR_TYPES: dict[Kind, int] = {"f32": 0, "f16": 1, "bf16": 30}
_BYTES: dict[Kind, int] = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Tensor:
    """load: gives it in float32."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    load: Callable[[], NDArray[np.float32]]

    @property
    def bytes(self) -> int:
        return _BYTES[self.kind] * prod(self.shape)


def write_gguf(file: Path, settings: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<Iqq", 3, len(tensors), len(settings)))
        for key, value in settings.items():
            stream.write(_text(key) + _value(value))
        offset = 0
        for tensor in tensors:
            # Its dimensions begin with the one whose neighbours lie beside each other.
            shape = tensor.shape[::-1]
            stream.write(_text(tensor.name) + struct.pack(f"<I{len(shape)}q", len(shape), *shape))
            stream.write(struct.pack("<iQ", _TENSOR_TYPES[tensor.kind], offset))
            offset += _aligned(tensor.bytes)
        _fill(stream)
        for tensor in tensors:
            values = tensor.load()
            assert values.shape == tensor.shape, f"{tensor.name} is {values.shape}, not {tensor.shape}"
            stream.write(_encoded(values, tensor.kind).tobytes())
            _fill(stream)


def _encoded(values: NDArray[np.float32], kind: Kind) -> NDArray[np.generic]:
    match kind:
        case "f32":
            return values.astype("<f4")
        case "f16":
            return values.astype("<f2")
        case "bf16":
            # The checkpoint's numbers are bfloat16 already: their other bits are zeros.
            return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def _value(value: Value) -> bytes:
    if isinstance(value, str | bool | int | float):
        kind, encoded = _scalar(value)
        return struct.pack("<i", kind) + encoded
    kinds = {_scalar(each)[0] for each in value} or {_STRING}
    (kind,) = kinds
    # In lists llama.cpp wants signed numbers.
    kind = _INT32 if kind == _UINT32 else kind
    return struct.pack("<iiQ", _ARRAY, kind, len(value)) + b"".join(_scalar(each)[1] for each in value)


def _scalar(value: bool | int | float | str) -> tuple[int, bytes]:
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int():
            return _UINT32, struct.pack("<I", value)
        case float():
            return _FLOAT32, struct.pack("<f", value)
        case str():
            return _STRING, _text(value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _fill(stream: BinaryIO) -> None:
    stream.write(bytes(_aligned(stream.tell()) - stream.tell()))
