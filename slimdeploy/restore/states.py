"""What restoration has come to, on disk as it goes: what a killed one left, the next one goes on from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..writing import new_file


@dataclass(frozen=True)
class States:
    """folder: for one set of inputs, exists; None: nothing is written, and nothing found."""

    folder: Path | None = None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """In the place of what went by this name before; a kill leaves the one or the other."""
        if self.folder is not None:
            with new_file(self.folder / f"{name}.safetensors") as file:
                save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, file)

    def load(self, name: str) -> dict[str, Tensor]:
        """What was saved last, on the CPU; empty where nothing was."""
        file = None if self.folder is None else self.folder / f"{name}.safetensors"
        return dict(load_file(file)) if file is not None and file.is_file() else {}
