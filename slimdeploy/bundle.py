"""One file of a folder: a zip archive that compresses nothing, for packed weights are noise to a compressor.

No time and no machine stands in it, so that equal folders give equal bundles. Knows no manifest.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .errors import ArtifactError
from .writing import new_file, sha256_of

_NO_TIME = (1980, 1, 1, 0, 0, 0)
"""The first that a zip archive can tell."""
_ZIP64_FROM = 2**31 - 1


def is_bundle(path: Path) -> bool:
    """Whether a zip archive lies there; says nothing of its state."""
    return path.is_file() and zipfile.is_zipfile(path)


def write_bundle(folder: Path, names: Iterable[str], file: Path) -> None:
    """Put files of `folder` into a bundle, in this order. names: relative, with slashes.

    Raises ArtifactError where `file` is something else already, or cannot be written; the old one stays then.
    """
    if file.exists() and not is_bundle(file):
        raise ArtifactError(f"{file} exists and is no bundle; name another file")
    with new_file(file) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            large = (folder / name).stat().st_size >= _ZIP64_FROM
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=large) as target:
                shutil.copyfileobj(source, target)


def unpack_bundle(file: Path, folder: Path) -> None:
    """Fill `folder` with the files of a bundle.

    Raises ArtifactError for one that is damaged or that `write_bundle` has not made: compressed or encrypted, with two
    files of one name, or with one that would lie elsewhere.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _require_plain(file, entries)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as written:
                    shutil.copyfileobj(source, written)  # which compares the content with its checksum
    except (zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"{file} is damaged: {error}; copy it again") from None


def _require_plain(file: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    names: set[str] = set()
    size = 0
    for entry in entries:
        path, kind = PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
        strange = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or entry.is_dir()
        if strange or entry.filename in names or kind not in (0, stat.S_IFREG):
            raise ArtifactError(f"{file} holds '{entry.filename}', which no bundle of ours does; bundle it again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ArtifactError(f"{file} is compressed or encrypted, which no bundle of ours is; bundle it again")
        names.add(entry.filename)
        size += entry.file_size
    if size > file.stat().st_size:
        raise ArtifactError(f"{file} says that it holds {size} bytes, more than it has; bundle it again")


def place_for(file: Path) -> Path:
    """Where a bundle with this content is unpacked: in the user's cache folder, under its sha256."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ArtifactError(
            f"{file} has no place to be unpacked: no home folder is known; set XDG_CACHE_HOME"
        ) from None
    return cache / "slimdeploy" / sha256_of(file)
