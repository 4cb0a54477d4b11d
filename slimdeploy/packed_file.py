"""Packed weights in a safetensors file: writer and reader (docs/packed-format.md, "File").

Nothing in a file is taken on trust: its header is compared with what it describes before an array is read, and every
array is checked before it is handed out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError
from .packed_description import Description
from .packed_tensor import PackedTensor, short
from .writing import new_file

FORMAT: Final = "slimdeploy-packed"
VERSION: Final = "1"
PACKED_DTYPES: Final = {"U8": "uint8", "I8": "int8", "U16": "uint16"}
"""What safetensors and numpy call the types of packed arrays."""
_PARTS: Final = ("mask", "values", "scales")
# What safetensors reads into plain numpy: bf16, for one, only where some other package has taught it to.
_NUMPY_DTYPES: Final = {*PACKED_DTYPES, "BOOL", "I16", "I32", "I64", "U32", "U64", "F16", "F32", "F64", "C64"}


def write_packed(file: Path, tensors: Mapping[str, PackedTensor], others: Mapping[str, NDArray[Any]]) -> None:
    """Write packed weights by their layers' names, and other arrays beside them, into one safetensors file."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in others.items()}
    for name, packed in tensors.items():
        packed.validate(name)
        for part in _PARTS:
            if f"{name}.{part}" in arrays:
                raise ArtifactError(f"{file}: the array '{name}.{part}' has the name of a part of '{name}'; rename it")
            if (array := getattr(packed, part)).size:
                arrays[f"{name}.{part}"] = array
    described = {name: Description.of(packed).to_json() for name, packed in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "packed": json.dumps(described)}
    with new_file(file) as aside:
        save_file(arrays, aside, metadata)
        _fix_order(aside, metadata)


def _fix_order(file: Path, metadata: dict[str, str]) -> None:
    """Give a file's metadata its order: safetensors writes it in any, and equal inputs shall give equal files."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length)) | {"__metadata__": metadata}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, f"{file} has a header of {length} bytes, which became {len(text)}"
        stream.seek(8)
        stream.write(text)


def read_packed(file: Path) -> tuple[dict[str, PackedTensor], dict[str, NDArray[Any]]]:
    """Packed weights by their layers' names, every one checked, and the other arrays of a file.

    Raises ArtifactError that names the file or the tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            _refuse_duplicates(file)
            names = set(stored.keys())
            tensors = {name: _read(stored, names, name, said) for name, said in _descriptions(stored, file).items()}
            others = {name: _other(stored, name) for name in sorted(names)}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} is truncated or no safetensors file ({error}); export the model again") from None
    return tensors, others


def _refuse_duplicates(file: Path) -> None:
    """Raises ArtifactError where the header names a tensor twice, of which safetensors takes the last."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length)
    try:
        json.loads(header, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise ArtifactError(f"{file} has a header that contradicts itself: {error}; export the model again") from None


def _descriptions(stored: Any, file: Path) -> dict[str, Any]:
    """What the file says of its packed tensors, by name; of the right form at the top, unchecked below."""
    metadata = stored.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ArtifactError(
            f"{file} holds no packed weights: its format is {short(metadata.get('format'))}, not '{FORMAT}'"
        )
    if metadata.get("version") != VERSION:
        found = short(metadata.get("version"))
        raise ArtifactError(
            f"{file} is of version {found} of the packed format, this slimdeploy reads {VERSION}; upgrade it"
        )
    try:
        described = json.loads(metadata["packed"], object_pairs_hook=_without_duplicates)
        if not isinstance(described, dict):
            raise ValueError(f"{short(described)} is not a table")
    except (KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} does not describe its packed weights ({error}); export the model again") from None
    return described


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{short(name)} stands there twice")
        found[name] = value
    return found


def _read(stored: Any, names: set[str], name: str, said: Any) -> PackedTensor:
    """One packed tensor, checked; takes the arrays it is made of out of `names`."""
    whose = f"packed tensor {short(name)}"

    def refuse(problem: str) -> ArtifactError:
        return ArtifactError(f"{whose}: {problem}; export the model again")

    described = Description.from_json(said, whose)
    arrays = {}
    for part, (dtype, shape) in described.arrays().items():
        whole_name = f"{name}.{part}"
        if 0 in shape:
            if whole_name in names:
                raise refuse(f"it has an array '{part}', which a tensor of its description has not")
            arrays[part] = np.empty(shape, dtype)
            continue
        if whole_name not in names:
            raise refuse(f"its array '{part}' is missing")
        names.remove(whole_name)
        view = stored.get_slice(whole_name)
        found = (PACKED_DTYPES.get(view.get_dtype()), tuple(view.get_shape()))
        if found != (dtype, shape):
            raise refuse(f"its array '{part}' is {view.get_dtype()} {list(found[1])}, not {dtype} {list(shape)}")
        arrays[part] = stored.get_tensor(whole_name)
    packed = PackedTensor(described.rows, described.columns, described.encoding, described.pattern, **arrays)
    if packed.kept != described.kept:
        raise refuse(f"its mask keeps {packed.kept} weights, its description says {described.kept}")
    packed.validate(name)
    return packed


def _other(stored: Any, name: str) -> NDArray[Any]:
    try:
        if (dtype := stored.get_slice(name).get_dtype()) not in _NUMPY_DTYPES:
            raise TypeError(f"it has no {dtype}")
        array: NDArray[Any] = stored.get_tensor(name)
    except (TypeError, ValueError) as error:  # numpy's own: a shape beyond its limits
        raise ArtifactError(
            f"tensor {short(name)} cannot be read into numpy ({error}); store it as float32 or float16"
        ) from None
    return array
