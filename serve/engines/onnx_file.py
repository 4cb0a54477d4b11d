"""What an .onnx file says of the operators that it needs, read from its bytes: a device has no package for that.

Only the fields of the outermost message are walked over: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator
from pathlib import Path

from slimdeploy.errors import ArtifactError
from slimdeploy.kernels.operators import DOMAIN, VERSION

# Numbers of fields in onnx.proto: ModelProto.opset_import, and in it OperatorSetIdProto's.
_OPSET_IMPORT, _DOMAIN, _VERSION = 8, 1, 2
# Kinds of fields, and bytes of those that have always as many.
_VARINT, _SIZED, _FIXED = 0, 2, {1: 8, 5: 4}


def require_known_operators(file: Path) -> None:
    """Raises ArtifactError where a graph needs later operators of ours, which may mean something else by one name.

    onnxruntime does not compare them.
    """
    version = imported_version(file.read_bytes(), DOMAIN)
    if version > VERSION:
        raise ArtifactError(
            f"{file} needs version {version} of slimdeploy's operators, and this slimdeploy knows {VERSION}; upgrade it"
        )


def imported_version(model: bytes, domain: str) -> int:
    """Of a domain of operators; 0 where the model does not import it, and for what is no model."""
    try:
        for number, content in _fields(memoryview(model)):
            if number == _OPSET_IMPORT and isinstance(content, memoryview):
                said = dict(_fields(content))
                if said.get(_DOMAIN, b"") == domain.encode() and isinstance(version := said.get(_VERSION), int):
                    return version
    except (IndexError, ValueError):
        pass  # onnxruntime refuses it, and says why
    return 0


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of every field. Raises IndexError or ValueError for what is no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _SIZED:
            size, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"{kind} is no kind of field")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
