"""One file of an artifact: a zip archive that compresses nothing, for packed weights are noise to a compressor.

No time and no machine stands in it, so that equal artifacts give equal bundles. Knows what a manifest is called, and
not what stands in it.
"""

import fcntl
import os
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .errors import ArtifactError
from .writing import new_file, sha256_of, sweep

MANIFEST = "manifest.json"
_NO_TIME = (1980, 1, 1, 0, 0, 0)
"""The first that a zip archive can tell."""
_UTF8_NAME = 0x800
# What zipfile raises for archives that it cannot read; the last ones for headers of nonsense.
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError)


def is_bundle(path: Path) -> bool:
    """Whether a zip archive that begins with a manifest lies there; says nothing of its state."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()[0].filename == MANIFEST
    except (*_DAMAGE, OSError):
        return False


def write_bundle(folder: Path, names: Iterable[str], file: Path) -> None:
    """Put the manifest of `folder` into a bundle, and files in this order. names: relative, with slashes.

    Raises ArtifactError where `file` is something else already, or cannot be written; the old one stays then.
    """
    if file.exists() and not is_bundle(file):
        raise ArtifactError(f"{file} exists and is no bundle; name another file")
    with new_file(file) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for name in (MANIFEST, *names):
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = (folder / name).stat().st_size  # or 2 GB would be too much
            with (folder / name).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)


def manifest_in(file: Path) -> bytes:
    """The manifest of a bundle. Raises ArtifactError where it is damaged."""
    with _opened(file) as archive:
        return archive.read(MANIFEST)


def unpack_bundle(file: Path, folder: Path) -> None:
    """Fill `folder` with the files of a bundle.

    Raises ArtifactError for one that is damaged or that `write_bundle` has not made: compressed or encrypted, with two
    files of one name, or with one that would lie elsewhere.
    """
    with _opened(file) as archive:
        for entry in archive.infolist():
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("xb") as written:
                shutil.copyfileobj(source, written)  # which compares the content with its checksum


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            _require_plain(file, archive.infolist())
            yield archive
    except _DAMAGE as error:
        raise ArtifactError(f"{file} is damaged: {error}; copy it again") from None


def _require_plain(file: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    names: set[str] = set()
    size = 0
    for entry in entries:
        path, kind = PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
        strange = not path.name or str(path) != entry.filename or path.is_absolute() or ".." in path.parts
        if strange or "\\" in entry.filename or entry.filename in names or kind not in (0, stat.S_IFREG):
            raise ArtifactError(f"{file} holds '{entry.filename}', which no bundle of ours does; bundle it again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ~_UTF8_NAME:
            raise ArtifactError(f"{file} is compressed or encrypted, which no bundle of ours is; bundle it again")
        names.add(entry.filename)
        size += entry.file_size
    for name in names:
        if folders := names & {str(parent) for parent in PurePosixPath(name).parents}:
            raise ArtifactError(f"{file} holds '{folders.pop()}' as a file and as a folder; bundle it again")
    if size > file.stat().st_size:
        raise ArtifactError(f"{file} says that it holds {size} bytes, more than it has; bundle it again")


@contextmanager
def place_for(file: Path) -> Iterator[Path]:
    """Where a bundle of this content is unpacked: in the user's cache folder, under its sha256.

    No other process unpacks there while the body runs; what a killed one left is swept up.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        cache = (cache if cache.is_absolute() else Path.home() / ".cache") / "slimdeploy"
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".lock").open("w")
    except (OSError, RuntimeError) as error:
        raise ArtifactError(
            f"{file} cannot be unpacked into the cache folder: {error}; set XDG_CACHE_HOME to one that may be written"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also by a kill
        sweep(cache)
        yield cache / sha256_of(file)
