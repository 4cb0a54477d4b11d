"""Artifacts for tests, made the way the pipeline makes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimdeploy.artifact import Manifest, write_manifest
from slimdeploy.writing import new_folder


@contextmanager
def new_artifact(path: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder to fill; it becomes the artifact at `path` when the body ends."""
    with new_folder(path) as folder:
        yield folder
        write_manifest(folder, manifest)
