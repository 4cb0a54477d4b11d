"""What the matrices of an export take on disk, read from its files."""

import json
from collections.abc import Iterator
from pathlib import Path

from onnxscript import ir

from ..model import Model


def stored_bytes(model: Model, folder: Path) -> dict[str, int]:
    """Bytes of every prunable matrix by its name: masks, values and scales together; biases do not count."""
    sizes = dict(_tensors(folder))
    found = {}
    for layer in model.layers():
        prefixes = model.arch.checkpoint_names(f"{layer.name}.")
        found[layer.name] = sum(
            size for name, size in sizes.items() if name.startswith(prefixes) and not name.endswith(".bias")
        )
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size of all weights in the graphs and checkpoints of a folder."""
    for file in folder.glob("*.onnx"):
        for value in ir.load(file).graph.initializers.values():
            if value.const_value is not None:
                yield str(value.name), value.const_value.nbytes
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, end - start
