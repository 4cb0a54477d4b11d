"""An artifact is whole or it is refused; a write that fails leaves the old one."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from artifacts import new_artifact
from safetensors.numpy import save_file

from slimdeploy.artifact import MANIFEST, Manifest, open_artifact
from slimdeploy.errors import ArtifactError
from slimdeploy.writing import new_folder, sweep

SOME_MANIFEST = Manifest(format="onnx", model="demo", family="llava", sparsity=0.6, quality={"dense": 0.95})


def write(path: Path, content: str = "weights") -> Path:
    with new_artifact(path, SOME_MANIFEST) as folder:
        (folder / "model.bin").write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
    return path


def test_what_was_written_is_what_is_opened(tmp_path: Path) -> None:
    artifact = open_artifact(write(tmp_path / "artifact"))
    assert artifact.manifest.quality == {"dense": 0.95}
    assert set(artifact.manifest.files) == {"model.bin", "sub/config.json"}
    assert artifact.bytes == len("weights") + 2


def test_a_run_folder_opens_as_the_artifact_in_it(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    assert open_artifact(tmp_path).path == tmp_path / "artifact"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "is missing"),
        (lambda folder: (folder / "model.bin").write_text("weight"), "6 bytes, not 7"),
        (lambda folder: (folder / "model.bin").write_text("weighty"), "sha256"),
        (lambda folder: (folder / MANIFEST).unlink(), "slimdeploy export"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not a manifest"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "not a manifest"),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_file_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(write(tmp_path / "artifact"))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(tmp_path / "artifact")


def test_of_several_damaged_files_the_first_is_named(tmp_path: Path) -> None:
    """A large one is found last, because all are read at the same time."""
    with new_artifact(tmp_path / "artifact", SOME_MANIFEST) as folder:
        (folder / "a.bin").write_bytes(bytes(2**24))
        (folder / "b.bin").write_text("weights")
    (tmp_path / "artifact" / "a.bin").write_bytes(bytes(2**24 - 1) + b"1")
    (tmp_path / "artifact" / "b.bin").unlink()
    with pytest.raises(ArtifactError, match=r"a\.bin was altered"):
        open_artifact(tmp_path / "artifact")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"files": {"../secret": {"sha256": "", "bytes": 0}}}, "outside"),
        ({"files": {"/etc/passwd": {"sha256": "", "bytes": 0}}}, "outside"),
        ({"files": {"model.bin": {"sha256": ""}}}, "not a manifest"),
        ({"surprise": 1}, "not a manifest"),
        ({"layers": "x"}, "not a manifest"),
        ({"sparsity": "0.6"}, "not a manifest"),
    ],
)
def test_a_hostile_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = write(tmp_path / "artifact") / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(tmp_path / "artifact")


def test_a_file_that_the_manifest_does_not_know_is_refused(tmp_path: Path) -> None:
    (write(tmp_path / "artifact") / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is not in the artifact's manifest"):
        open_artifact(tmp_path / "artifact")


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ArtifactError, match="is a file"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_error_in_reading_is_not_told_as_one_in_writing(tmp_path: Path) -> None:
    def read_what_may_not_be_read() -> None:
        with new_folder(tmp_path / "artifact"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source" / "secret"))

    with pytest.raises(PermissionError):
        read_what_may_not_be_read()


def test_what_a_killed_writer_left_is_swept_and_a_folder_it_had_moved_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".report.json.7.partial").write_text("half")
    (tmp_path / ".search.7.partial").mkdir()
    (tmp_path / ".prune.7.old").mkdir()
    (tmp_path / ".export.v2.7.old").mkdir()
    (tmp_path / "prune").mkdir()
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export.v2", "prune"]


def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path) -> None:
    path = write(tmp_path / "artifact")

    def fill_the_disk() -> None:
        with new_artifact(path, SOME_MANIFEST) as folder:
            (folder / "half").write_text("written")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="nothing was changed"):
        fill_the_disk()
    assert "model.bin" in open_artifact(path).manifest.files
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"]


def test_a_new_artifact_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = write(tmp_path / "artifact")
    write(path, "other weights")
    assert (open_artifact(path).path / "model.bin").read_text() == "other weights"
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def big_file(folder: Path) -> None:
    (folder / "big").write_bytes(bytes(2_000_000))


def big_tensor(folder: Path) -> None:
    save_file({"big": np.zeros(2_000_000, np.uint8)}, folder / "big.safetensors")


@pytest.mark.parametrize("fill", [big_file, big_tensor])
def test_a_disk_that_is_really_full_leaves_the_old_artifact(small_disk: Path, fill: Callable[[Path], None]) -> None:
    path = write(small_disk / "artifact")

    def overfill() -> None:
        with new_artifact(path, SOME_MANIFEST) as folder:
            fill(folder)

    with pytest.raises(ArtifactError, match="No space left on device; nothing was changed"):
        overfill()
    assert "model.bin" in open_artifact(path).manifest.files
    assert [entry.name for entry in small_disk.iterdir()] == ["artifact"]
