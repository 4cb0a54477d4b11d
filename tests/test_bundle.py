"""A bundle is the artifact in one file: equal bytes for equal artifacts, refused when anything in it has changed."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifacts import new_artifact

from slimdeploy.artifact import MANIFEST, Artifact, Manifest, bundle, is_artifact, open_artifact, write_manifest
from slimdeploy.cli import main
from slimdeploy.errors import ArtifactError
from slimdeploy.writing import sha256_of

WEIGHTS = "model.bin"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return _written(tmp_path / "run" / "artifact")


@pytest.fixture
def bundled(artifact: Artifact, tmp_path: Path) -> Path:
    file = tmp_path / "shipped.zip"
    bundle(artifact, file)
    return file


def _written(path: Path) -> Artifact:
    with new_artifact(path, Manifest("onnx", "demo", "llava", quality={"dense": 0.95})) as folder:
        (folder / WEIGHTS).write_bytes(bytes(range(256)) * 100)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
    return open_artifact(path)


def _rewritten(file: Path, change: Callable[[str, bytes], Iterator[tuple[str, bytes]]], method: int = 0) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in (pair for entry in entries for pair in change(*entry)):
            archive.writestr(name, content)


def test_a_bundle_opens_as_the_artifact_that_it_was_made_of(artifact: Artifact, bundled: Path) -> None:
    shutil.rmtree(artifact.path)
    assert is_artifact(bundled)
    opened = open_artifact(bundled)
    assert opened.manifest == artifact.manifest
    assert opened.source == bundled
    assert (opened.path / WEIGHTS).read_bytes() == bytes(range(256)) * 100
    assert (opened.path / "sub" / "config.json").read_text() == "{}"


def test_it_stores_the_manifest_first_and_compresses_nothing(bundled: Path) -> None:
    with zipfile.ZipFile(bundled) as archive:
        assert archive.namelist() == [MANIFEST, WEIGHTS, "sub/config.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_equal_artifacts_give_equal_bundles(bundled: Path, tmp_path: Path) -> None:
    again = _written(tmp_path / "again")
    os.utime(again.path / WEIGHTS, (0, 0))
    assert bundle(again, tmp_path / "again.zip") == sha256_of(bundled)
    assert (tmp_path / "again.zip").read_bytes() == bundled.read_bytes()


def test_it_is_unpacked_once(bundled: Path, cache: Path) -> None:
    folder = open_artifact(bundled).path
    unpacked = (folder / WEIGHTS).stat().st_ino
    assert open_artifact(bundled).path == folder
    assert (folder / WEIGHTS).stat().st_ino == unpacked
    assert {entry.name for entry in (cache / "slimdeploy").iterdir()} == {folder.name, ".lock"}
    assert folder.name == sha256_of(bundled)


def test_what_was_altered_after_it_was_unpacked_is_unpacked_anew(bundled: Path) -> None:
    folder = open_artifact(bundled).path
    (folder / WEIGHTS).write_bytes(b"other")
    assert (open_artifact(bundled).path / WEIGHTS).stat().st_size == 25_600
    (folder / WEIGHTS).write_bytes(b"other")
    (folder / MANIFEST).unlink()
    write_manifest(folder, Manifest("onnx", "other", "llava"))
    assert (open_artifact(bundled).path / WEIGHTS).stat().st_size == 25_600, "a manifest that fits is not the bundle's"


def _altered(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, bytes(25_600) if name == WEIGHTS else content


def _without_weights(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    if name != WEIGHTS:
        yield name, content


def _shortened(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content[:100] if name == WEIGHTS else content


def _with(other: str) -> Callable[[str, bytes], Iterator[tuple[str, bytes]]]:
    def change(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        yield name, content
        if name == MANIFEST:
            yield other, b"more"

    return change


def _nothing(_: str, __: bytes) -> Iterator[tuple[str, bytes]]:
    yield from ()


def _unchanged(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content


NO_BUNDLE = "is no bundle of `slimdeploy bundle`, or a truncated one"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: _rewritten(file, _altered), r"shipped\.zip/model\.bin was altered"),
        (lambda file: _rewritten(file, _without_weights), r"shipped\.zip/model\.bin is missing"),
        (lambda file: _rewritten(file, _shortened), r"shipped\.zip/model\.bin has 100 bytes, not 25600"),
        (lambda file: _rewritten(file, _with("more.txt")), r"shipped\.zip/more\.txt is not in the artifact's manifest"),
        (lambda file: _rewritten(file, _with("../more.txt")), r"holds '\.\./more\.txt', which no bundle of ours does"),
        (lambda file: _rewritten(file, _with("/more.txt")), r"holds '/more\.txt', which no bundle of ours does"),
        (lambda file: _rewritten(file, _with("sub/")), "holds 'sub/', which no bundle of ours does"),
        (lambda file: _rewritten(file, _with("./more.txt")), r"holds '\./more\.txt', which no bundle of ours does"),
        (lambda file: _rewritten(file, _with("sub")), "holds 'sub' as a file and as a folder"),
        (lambda file: _rewritten(file, _nothing), NO_BUNDLE),
        (lambda file: _rewritten(file, _unchanged, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), NO_BUNDLE),
        (lambda file: file.write_bytes(file.read_bytes().replace(bytes(range(200)), bytes(200))), "Bad CRC-32"),
        (lambda file: file.write_bytes(b""), NO_BUNDLE),
    ],
)
def test_a_bundle_that_has_changed_is_refused_and_leaves_nothing(
    bundled: Path, cache: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(bundled)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(bundled)
    assert not list(cache.glob("slimdeploy/[!.]*"))
    assert main(["serve", str(bundled)]) == 2, "before any traffic is served"
    assert main(["verify", str(bundled)]) == 2
    assert "shipped.zip" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(bundled: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(bundled, "a") as archive:
        archive.writestr(WEIGHTS, b"other")
    with pytest.raises(ArtifactError, match=r"holds 'model\.bin', which"):
        open_artifact(bundled)


def test_nothing_but_a_bundle_is_overwritten(artifact: Artifact, tmp_path: Path, bundled: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("precious", b"")
    for name in ("mine", "mine.zip"):
        with pytest.raises(ArtifactError, match="exists and is no bundle"):
            bundle(artifact, tmp_path / name)
    assert (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(ArtifactError, match="would lie in the artifact"):
        bundle(artifact, artifact.path / "sub" / "mine.zip")
    assert bundle(artifact, bundled) == sha256_of(bundled)


def test_the_commands_bundle_and_verify(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = artifact.path.parent, artifact.path.parent / "artifact.zip"
    assert main(["bundle", str(run)]) == 0
    sha256, name = capsys.readouterr().out.split()
    assert (sha256, name) == (sha256_of(file), str(file))
    for arguments in ([str(file)], [str(file), "--sha256", sha256.upper()], [str(run)]):
        assert main(["verify", *arguments]) == 0
        assert "is intact: 2 files, 0.0 MB" in capsys.readouterr().out
    assert main(["verify", str(file), "--sha256", "0" * 64]) == 2
    assert f"has the sha256 {sha256}, not '{'0' * 64}'" in capsys.readouterr().err
    assert main(["verify", str(file), "--sha256", sha256[:12]]) == 2
    assert f"--sha256 '{sha256[:12]}' is none: it has 64 digits" in capsys.readouterr().err
    assert main(["verify", str(file), "--sha256", ""]) == 2, "a variable of the shell that is empty"
    file.write_bytes(file.read_bytes()[:-30])
    assert main(["verify", str(file), "--sha256", sha256]) == 2
    assert "copy it again" in capsys.readouterr().err
    assert main(["verify", str(run), "--sha256", sha256]) == 2
    assert "--sha256 is that of a bundle" in capsys.readouterr().err


def test_a_bundle_is_not_bundled_over_itself(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", str(bundled)]) == 2
    assert "is a bundle already" in capsys.readouterr().err


def test_from_inside_the_artifact_it_is_bundled_beside_it(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(artifact.path)
    assert main(["bundle", "."]) == 0
    assert open_artifact(artifact.path.with_name("artifact.zip")).manifest == artifact.manifest


def test_processes_that_unpack_one_bundle_wait_for_each_other(bundled: Path, cache: Path) -> None:
    (cache / "slimdeploy").mkdir(parents=True)
    left = cache / "slimdeploy" / f".{sha256_of(bundled)}.1.partial"
    left.mkdir()
    command = [sys.executable, "-m", "slimdeploy", "verify", str(bundled)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not left.exists(), "a killed one left it"


def test_a_cache_that_cannot_be_written_is_named(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundled))
    with pytest.raises(ArtifactError, match=r"cannot be unpacked into the cache folder: .*; set XDG_CACHE_HOME"):
        open_artifact(bundled)
