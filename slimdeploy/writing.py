"""Writing that leaves all or nothing: what is new is made aside and takes the place of the old when it is whole.

A crash or a full disk leaves the old one as it was.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ArtifactError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
