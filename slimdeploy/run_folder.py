"""The folder of one run: each finished step's result, and the inputs that it came from.

A step is finished when its folder stands under its name; it is written aside and renamed, so a kill leaves either
all of it or nothing. Beside the result lies the fingerprint of what went in: settings, and the fingerprints of the
steps before. A step whose fingerprint is unchanged does not run again. Knows nothing of what the steps do.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .artifact import new_folder, sha256_of
from .errors import SlimdeployError
from .progress import Progress

_FINGERPRINT = "inputs.json"


@dataclass(frozen=True)
class Step:
    """A finished step: where its result lies and the fingerprint of what it came from."""

    path: Path
    fingerprint: str


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its steps."""

    path: Path
    progress: Progress

    def step(self, name: str, inputs: Mapping[str, Any], produce: Callable[[Path], None]) -> Step:
        """The result of step `name`, from disk when `inputs` are those that it was made from.

        inputs: JSON values; a `Step` stands for its fingerprint. produce: fills the folder that it is given.
        """
        values = {key: value.fingerprint if isinstance(value, Step) else value for key, value in inputs.items()}
        text = json.dumps({"step": name, "slimdeploy": __version__, **values}, indent=1, sort_keys=True)
        step = Step(self.path / name, hashlib.sha256(text.encode()).hexdigest())
        if not _is_finished(step.path, text):
            self.progress.say(f"[bold]{name}[/]")
            with new_folder(step.path) as folder:
                produce(folder)
                (folder / _FINGERPRINT).write_text(text)
        return step

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of this folder; the lock goes with the process, however that ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SlimdeployError(
                    f"another run is at work in {self.path}; wait for it or set another `out`"
                ) from None
            yield


def _is_finished(folder: Path, inputs: str) -> bool:
    file = folder / _FINGERPRINT
    return file.is_file() and file.read_text() == inputs


def fingerprint_of_folder(folder: Path) -> str:
    """sha256 over the names and contents of all files in `folder`, hidden ones left out."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not name.startswith("."):
            digest.update(f"{name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
