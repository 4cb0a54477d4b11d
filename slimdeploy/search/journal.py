"""What a search has found out, on disk as it goes. A search that was killed runs again from its seed, and everything
that stands in its journal is read instead of being found out again: so it arrives where it was, and goes on.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..writing import new_file

_NOTES = "notes.jsonl"

Tensors = dict[str, Tensor]


class Journal:
    """folder: exists. A line that a kill cut off is found out again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Any] = {}
        file = folder / _NOTES
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            entry = json.loads(line)
            self._known[entry["of"]] = entry["value"]
        if len(whole) < len(lines):
            with new_file(file) as aside:
                aside.write_text("".join(whole), encoding="utf-8")

    def recall(self, of: str) -> Any:
        """What was noted under this name; None where nothing was. of: all that the value depends on."""
        return self._known.get(_key(of))

    def note(self, of: str, value: Any) -> None:
        """value: JSON, not None."""
        self._known[_key(of)] = value
        with (self._folder / _NOTES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"of": _key(of), "value": value}) + "\n")

    def tensors(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What `make` gives, or gave before under the same name."""
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            made = make()
            with new_file(file) as aside:
                save_file({key: tensor.contiguous() for key, tensor in made.items()}, aside)
        return dict(load_file(file))


def _key(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()
