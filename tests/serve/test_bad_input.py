"""Files that cannot be served are refused by the command line before it answers anyone: exit code 2, and their name.

What is wrong with a bundle stands in tests/test_bundle.py.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from slimdeploy.artifact import MANIFEST, Artifact, write_manifest
from slimdeploy.cli import main
from slimdeploy.serve.server import Server

DECODER = "decoder_model_merged.onnx"
WEIGHTS = f"{DECODER}_data"


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    """A copy of the artifact, the decoder's weights beside its graph."""
    folder = shutil.copytree(artifact.path, tmp_path / "copy")
    model = onnx.load(folder / DECODER)
    onnx.save(model, folder / DECODER, save_as_external_data=True, location=WEIGHTS, size_threshold=4096)
    return folder


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def of_version(version: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite(folder / MANIFEST, version=version)

    return change


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def unknown_setting(folder: Path) -> None:
    file = folder / "processor_config.json"
    rewrite(file, image_processor=json.loads(file.read_text())["image_processor"] | {"do_flip": True})


def later_operators(folder: Path) -> None:
    model = onnx.load(folder / DECODER, load_external_data=False)
    model.opset_import.append(onnx.helper.make_opsetid("slimdeploy", 3))
    onnx.save(model, folder / DECODER)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """That serving sets for the whole process."""
    logger = logging.getLogger("slimdeploy")
    before = logger.level
    yield
    logger.setLevel(before)


def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code."""
    monkeypatch.setattr(Server, "run", lambda *_, **__: None)
    return main(["serve", str(folder), "--port", "0"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing; copy or export the artifact again"),
        (cut, f"{WEIGHTS} has "),
        (later_operators, f"{DECODER} has "),
        (of_version(99), f"{MANIFEST} is of version 99, this slimdeploy reads 2; upgrade slimdeploy"),
        (of_version(1), f"{MANIFEST} is of version 1, this slimdeploy reads 2; export the artifact again"),
    ],
)
def test_what_the_manifest_contradicts_is_refused(
    artifact: Artifact,
    folder: Path,
    damage: Callable[[Path], None],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    describe(folder, artifact)
    assert served(folder, monkeypatch) == 0
    damage(folder)
    assert served(folder, monkeypatch) == 2
    assert f"{folder}/{sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, f"{DECODER} cannot be loaded by onnxruntime: "),
        (unknown_setting, "processor_config.json has do_flip = true; this server does not know that setting"),
        (
            later_operators,
            f"{DECODER} needs version 3 of slimdeploy's operators, and this slimdeploy knows 2; upgrade",
        ),
    ],
)
def test_what_was_made_wrong_is_refused_though_the_manifest_agrees(
    artifact: Artifact,
    folder: Path,
    damage: Callable[[Path], None],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    describe(folder, artifact)
    assert served(folder, monkeypatch) == 2
    assert f"{folder}/{sentence}" in capsys.readouterr().err


def describe(folder: Path, artifact: Artifact) -> None:
    (folder / MANIFEST).unlink()
    write_manifest(folder, artifact.manifest)
