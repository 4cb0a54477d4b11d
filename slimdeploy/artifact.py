"""What is shipped: a folder, or a bundle of it, with a manifest that names every file's size and sha256.

`write_manifest` comes last. `open_artifact` refuses one that is incomplete, altered or too new.
The manifest holds no time and no machine, so that equal inputs give an equal artifact.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .bundle import MANIFEST as MANIFEST
from .bundle import is_bundle, manifest_in, place_for, unpack_bundle, write_bundle
from .errors import ArtifactError
from .writing import new_folder, sha256_of

MANIFEST_VERSION = 2
"""2: the decoder of an ONNX artifact writes into the KV cache that it reads."""


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
    """A folder that was checked against its manifest. bundle: the bundle that it came in, if it came in one."""

    path: Path
    manifest: Manifest
    bundle: Path | None = None

    @property
    def source(self) -> Path:
        """What was opened: the bundle, or the folder itself."""
        return self.bundle or self.path

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, completed with the size and sha256 of every file there."""
    files = {
        file.relative_to(folder).as_posix(): FileEntry(sha256_of(file), file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(asdict(replace(manifest, files=files)), indent=1))


def bundle(artifact: Artifact, file: Path) -> str:
    """Put the artifact into one file. Returns its sha256, equal for equal artifacts.

    Raises ArtifactError where `file` is something else already or lies in the artifact, or cannot be written.
    """
    if file.resolve().is_relative_to(artifact.path.resolve()):
        raise ArtifactError(f"{file} would lie in the artifact, which has no such file; name another place")
    write_bundle(artifact.path, sorted(artifact.manifest.files), file)
    return sha256_of(file)


def is_artifact(path: Path) -> bool:
    """Whether an artifact lies at `path`, or a bundle of one, or a run folder with one; says nothing of its state."""
    return path.is_file() or (_artifact_folder(path) / MANIFEST).is_file()


def _artifact_folder(path: Path) -> Path:
    return path / "artifact" if (path / "artifact" / MANIFEST).is_file() else path


def open_artifact(path: Path) -> Artifact:
    """The artifact at `path`, in the run folder or in the bundle `path`, every file compared with the manifest.

    A bundle is unpacked into the user's cache folder, unless it was before. Raises ArtifactError that names the first
    file that is missing, truncated or altered.
    """
    if not path.is_file():
        folder = _artifact_folder(path)
        return Artifact(folder, _checked(folder, folder))
    if not is_bundle(path):
        raise ArtifactError(
            f"{path} is no bundle of `slimdeploy bundle`, or a truncated one; copy it again, or name a folder"
        )
    with place_for(path) as folder:
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest_in(path):
            with suppress(ArtifactError):  # altered since it was unpacked
                return Artifact(folder, _checked(folder, folder), path)
        with new_folder(folder) as unpacked:
            unpack_bundle(path, unpacked)
            manifest = _checked(unpacked, path)
        return Artifact(folder, manifest, path)


def _checked(folder: Path, source: Path) -> Manifest:
    """The manifest of a folder that holds what it says. source: what errors call the folder."""
    manifest = _read_manifest(folder, source)
    names = manifest.files
    with ThreadPoolExecutor(os.cpu_count()) as hashing:
        for _ in hashing.map(_check_file, repeat(folder), repeat(source), names, names.values()):
            pass  # in their order, so that the first that is wrong is named
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if not file.is_dir() and name != MANIFEST and name not in manifest.files:
            raise ArtifactError(
                f"{source / name} is not in the artifact's manifest; take it out, or export the artifact again"
            )
    return manifest


def _check_file(folder: Path, source: Path, name: str, entry: FileEntry) -> None:
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ArtifactError(f"{source / MANIFEST} names '{name}', which lies outside the artifact")
    if not file.is_file():
        raise ArtifactError(f"{source / name} is missing; copy or export the artifact again")
    if file.stat().st_size != entry.bytes:
        raise ArtifactError(
            f"{source / name} has {file.stat().st_size} bytes, not {entry.bytes}; copy or export it again"
        )
    if sha256_of(file) != entry.sha256:
        raise ArtifactError(f"{source / name} was altered: its sha256 is not the manifest's; copy or export it again")


def _read_manifest(folder: Path, source: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{source} is no artifact: it has no {MANIFEST}; `slimdeploy export` makes one")
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = values["version"]
        if version != MANIFEST_VERSION:
            remedy = "upgrade slimdeploy" if version > MANIFEST_VERSION else "export the artifact again"
            raise ArtifactError(
                f"{source / MANIFEST} is of version {version}, this slimdeploy reads {MANIFEST_VERSION}; {remedy}"
            )
        # The class refuses unknown keys, pydantic refuses wrong types.
        return TypeAdapter(Manifest).validate_json(json.dumps(asdict(Manifest(**values))), strict=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{source / MANIFEST} is not a manifest: {reason}; export the artifact again") from None
