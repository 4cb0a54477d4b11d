"""What a search has found out, on disk as it goes. A search that was killed runs again from its seed, and everything
that stands in its journal is read instead of being judged again: so it arrives where it was, and goes on.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..artifact import new_file

_VERDICTS = "verdicts.jsonl"

Tensors = dict[str, Tensor]


class Journal:
    """folder: exists. A line that a kill cut off is judged again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verdicts: dict[str, float] = {}
        file = folder / _VERDICTS
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            entry = json.loads(line)
            self._verdicts[entry["of"]] = entry["value"]
        if len(whole) < len(lines):
            with new_file(file) as aside:
                aside.write_text("".join(whole), encoding="utf-8")

    def verdict(self, of: str, judge: Callable[[], float]) -> float:
        """What `judge` says, or said before under the same name. of: all that its verdict depends on."""
        key = hashlib.sha256(of.encode()).hexdigest()
        if key not in self._verdicts:
            self._verdicts[key] = judge()
            with (self._folder / _VERDICTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"of": key, "value": self._verdicts[key]}) + "\n")
        return self._verdicts[key]

    def tensors(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What `make` gives, or gave before under the same name."""
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            made = make()
            with new_file(file) as aside:
                save_file({key: tensor.contiguous() for key, tensor in made.items()}, aside)
        return dict(load_file(file))
