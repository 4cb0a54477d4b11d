"""What is shipped: a folder with a manifest that names every file's size and sha256.

`new_folder` fills one aside and renames it into place when its body ends without an error, so that a crash or a full
disk leaves the old one as it was; `write_manifest` comes last. `open_artifact` refuses one that is incomplete, altered
or too new.
The manifest holds no time and no machine, so that equal inputs give an equal artifact.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .errors import ArtifactError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact holds and how it was made.

    format: "onnx", "vllm" or "checkpoint". model: name of the source model, as users ask for it in a request.
    family: its architecture's `model_type`. sparsity: share of the prunable weights that is zero.
    layers: one row per prunable matrix, as `policy.describe` gives them, and its bytes in the files. quality: accuracy
    on the test split by stage ("dense", "pruned", "restored"), as `scoring.Accuracy`. verification: what was compared
    with torch, and how far apart they were. versions: packages that made it. test_split: fingerprint of the samples
    behind `quality`.
    """

    format: str
    model: str
    family: str
    sparsity: float = 0.0
    layers: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    test_split: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)
    version: int = MANIFEST_VERSION

    @property
    def is_packed(self) -> bool:
        """Whether pruned weights are left out, and not stored as zeros."""
        return str(self.verification.get("weights")).startswith("packed")


@dataclass(frozen=True)
class Artifact:
    """A folder that was checked against its manifest."""

    path: Path
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of the folder `path` when the body ends, and vanishes when it raises.

    Raises ArtifactError when the disk is full or may not be written, and when `path` is a file.
    """
    if path.is_file():
        raise ArtifactError(f"{path} is a file; name a folder")
    with _aside(path) as folder:
        folder.mkdir()
        yield folder
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            folder.rename(path)
            shutil.rmtree(old)
        else:
            folder.rename(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The same for one file, which the body writes."""
    with _aside(path) as file:
        yield file
        file.replace(path)


def sweep(folder: Path) -> None:
    """Clear away what writers that were killed left in `folder`; a folder that had been moved aside comes back."""
    for leftover in folder.glob(".*.partial"):
        _remove(leftover)
    for old in folder.glob(".*.old"):
        path = old.with_name(old.name[1:].rsplit(".", 2)[0])
        if path.exists():
            _remove(old)
        else:
            old.rename(path)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
    except Exception as error:
        if (reason := _why_not_written(error, path, aside)) is None:
            raise
        raise ArtifactError(f"{path} cannot be written: {reason}; nothing was changed there") from error
    finally:
        _remove(aside)


def _why_not_written(error: Exception, path: Path, aside: Path) -> str | None:
    """The system's words when an error means that `path` cannot be written; None for any other error."""
    if isinstance(error, OSError):
        number, place = error.errno, Path(str(error.filename or ""))
    else:
        # Libraries in Rust (safetensors) put the system's error into words.
        worded = re.search(r"\(os error (\d+)\)", str(error))
        number, place = (int(worded[1]) if worded else None), Path()
    if number is None:
        return None
    here = place.is_relative_to(aside) or (place.is_absolute() and path.is_relative_to(place))
    return os.strerror(number) if here or number in _DISK_FULL else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, completed with the size and sha256 of every file there."""
    files = {
        file.relative_to(folder).as_posix(): FileEntry(sha256_of(file), file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(asdict(replace(manifest, files=files)), indent=1))


def is_artifact(path: Path) -> bool:
    """Whether an artifact, or a run folder with one in it, lies at `path`; says nothing of its state."""
    return (_artifact_folder(path) / MANIFEST).is_file()


def _artifact_folder(path: Path) -> Path:
    return path / "artifact" if (path / "artifact" / MANIFEST).is_file() else path


def open_artifact(path: Path) -> Artifact:
    """The artifact at `path`, or in the run folder `path`, every file compared with the manifest.

    Raises ArtifactError that names the first file that is missing, truncated or altered.
    """
    folder = _artifact_folder(path)
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{folder / MANIFEST} names '{name}', which lies outside the artifact")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; export the artifact again")
        if file.stat().st_size != entry.bytes:
            raise ArtifactError(f"{file} has {file.stat().st_size} bytes, not {entry.bytes}; export it again")
        if sha256_of(file) != entry.sha256:
            raise ArtifactError(f"{file} was altered: its sha256 is not the manifest's; export the artifact again")
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if not file.is_dir() and name != MANIFEST and name not in manifest.files:
            raise ArtifactError(f"{file} is not in the artifact's manifest; take it out, or export the artifact again")
    return Artifact(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise ArtifactError(f"{folder} is no artifact: it has no {MANIFEST}; `slimdeploy export` makes one")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values["version"]
        if version != MANIFEST_VERSION:
            raise ArtifactError(f"{file} is of version {version}, this slimdeploy reads {MANIFEST_VERSION}; upgrade it")
        # The class refuses unknown keys, pydantic refuses wrong types.
        return TypeAdapter(Manifest).validate_json(json.dumps(asdict(Manifest(**values))), strict=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{file} is not a manifest: {reason}; export the artifact again") from None


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
