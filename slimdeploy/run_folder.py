"""The folder of one run: each finished step's result, and the inputs that it came from.

A result stands under its step's name. It is written aside and renamed, so a kill leaves all of it or nothing. The
inputs that it came from (settings, and the fingerprints of the steps before) lie under `inputs/`; they are removed
before a result is replaced and written after it, so they never vouch for another result. A step whose inputs are
unchanged does not run again. Knows nothing of what the steps do.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__
from .errors import ConfigError, SlimdeployError
from .progress import Progress
from .writing import new_file, new_folder, sha256_of, sweep

_INPUTS = "inputs"
_JOURNALS = ".journals"


@dataclass(frozen=True)
class Step:
    """A finished step: where its result lies, the fingerprint of what it came from, and what it noted on the way."""

    path: Path
    fingerprint: str
    notes: tuple[str, ...] = ()


def _trust(_: Path) -> None:
    """A result that was renamed into place is whole."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its steps."""

    path: Path
    progress: Progress

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        produce: Callable[[Path], None],
        check: Callable[[Path], object] = _trust,
    ) -> Step:
        """The result of step `name`, from disk when `inputs` are those that it was made from.

        inputs: JSON values; a `Step` stands for its fingerprint. produce: fills the folder that it is given.
        check: raises SlimdeployError when a finished result is no longer what it was; it is then made again.
        """
        text = _text_of(name, inputs)
        step = Step(self.path / name, _fingerprint(text))
        record, notes = (self.path / _INPUTS / f"{name}{kind}.json" for kind in ("", ".notes"))
        there = step.path.is_dir() and record.is_file() and notes.is_file()
        finished = there and record.read_text() == text and self._holds(step, check)
        if not finished:
            self.progress.say(f"step {name}")
            noted = len(self.progress.notes)
            with new_folder(step.path) as folder:
                produce(folder)
                record.unlink(missing_ok=True)
            with new_file(notes) as file:
                file.write_text(json.dumps(self.progress.notes[noted:], indent=1))
            with new_file(record) as file:
                file.write_text(text)
            shutil.rmtree(self.path / _JOURNALS / name, ignore_errors=True)
        return replace(step, notes=tuple(json.loads(notes.read_text())))

    def journal(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """A folder in which step `name` may note what it has done, for itself after a kill; gone once it is finished.

        What was noted for other inputs is cleared away.
        """
        folder = self.path / _JOURNALS / name / _fingerprint(_text_of(name, inputs))
        if not folder.is_dir():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def _holds(self, step: Step, check: Callable[[Path], object]) -> bool:
        try:
            check(step.path)
        except SlimdeployError as error:
            self.progress.say(f"{step.path.name} is made again: {error}")
            return False
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of this folder, and sweep up what a killed one left; a kill frees the lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"out = '{self.path}' cannot be used as the run's folder: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another run is at work in {self.path}; wait for it, or set another `out`") from None
            for folder in (self.path, self.path / _INPUTS):
                sweep(folder)
            yield


def _text_of(name: str, inputs: Mapping[str, Any]) -> str:
    values = {key: value.fingerprint if isinstance(value, Step) else value for key, value in inputs.items()}
    return json.dumps({"step": name, "slimdeploy": __version__, **values}, indent=1, sort_keys=True)


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of_folder(folder: Path) -> str:
    """sha256 over the names and contents of all files in `folder`, hidden ones left out."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not name.startswith("."):
            digest.update(f"{name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
