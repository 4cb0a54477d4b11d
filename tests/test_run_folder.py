"""A step runs once for its inputs, is never half there, and never vouches for another step's result."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from slimdeploy.artifact import Manifest, open_artifact, write_manifest
from slimdeploy.errors import SlimdeployError
from slimdeploy.progress import Progress
from slimdeploy.run_folder import RunFolder, fingerprint_of_folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run", Progress.silent())


def writes(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "result").write_text(text) and None


def fail(_: Path) -> None:
    raise AssertionError("this step must not run again")


def test_a_finished_step_does_not_run_again(folder: RunFolder) -> None:
    first = folder.step("search", {"seed": 0}, writes("policy"))
    assert folder.step("search", {"seed": 0}, fail) == first
    assert (first.path / "result").read_text() == "policy"


def test_changed_inputs_run_a_step_again_and_all_that_stand_on_it(folder: RunFolder) -> None:
    def run(seed: int) -> str:
        search = folder.step("search", {"seed": seed}, writes(f"policy {seed}"))
        prune = folder.step("prune", {"search": search}, writes(f"masks {seed}"))
        return (prune.path / "result").read_text()

    assert [run(0), run(1), run(0)] == ["masks 0", "masks 1", "masks 0"]


def test_a_step_that_fails_leaves_the_old_result_as_it_was(folder: RunFolder) -> None:
    step = folder.step("search", {"seed": 0}, writes("policy"))

    def half(path: Path) -> None:
        (path / "result").write_text("half")
        raise SlimdeployError("no")

    with pytest.raises(SlimdeployError):
        folder.step("search", {"seed": 1}, half)
    assert folder.step("search", {"seed": 0}, fail) == step
    assert (step.path / "result").read_text() == "policy"


def killed_in(path: Path, name: str) -> None:
    def die(folder: Path) -> None:
        (folder / "result").write_text("half")
        os._exit(9)

    RunFolder(path, Progress.silent()).step(name, {}, die)


def test_a_kill_leaves_nothing_half_written(folder: RunFolder) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_in, args=(folder.path, "search"))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (folder.path / "search").exists()
    with folder.locked():
        assert not list(folder.path.glob("*search*")), "what the killed run left is swept up"
    assert (folder.step("search", {}, writes("whole")).path / "result").read_text() == "whole"


def test_an_altered_artifact_is_made_again(folder: RunFolder) -> None:
    def produce(path: Path) -> None:
        (path / "model").write_text("weights")
        write_manifest(path, Manifest("onnx", "demo", "llava"))

    step = folder.step("artifact", {}, produce, check=open_artifact)
    (step.path / "model").write_text("tampered")
    folder.step("artifact", {}, produce, check=open_artifact)
    assert (step.path / "model").read_text() == "weights"


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SlimdeployError, match="cannot be used"),
        RunFolder(tmp_path / "file", Progress.silent()).locked(),
    ):
        pass


def test_two_runs_do_not_share_a_folder(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(SlimdeployError, match="another run"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_fingerprint_tells_names_and_contents_apart(tmp_path: Path) -> None:
    fingerprints = set()
    for name, text in (("a", "x"), ("b", "x"), ("a", "y")):
        path = tmp_path / f"{name}{text}"
        path.mkdir()
        (path / name).write_text(text)
        fingerprints.add(fingerprint_of_folder(path))
    assert len(fingerprints) == 3


def test_a_journal_stays_for_the_same_inputs_until_its_step_is_finished(folder: RunFolder) -> None:
    inputs = {"seed": 0}
    (folder.journal("search", inputs) / "note").write_text("so far")
    assert (folder.journal("search", inputs) / "note").read_text() == "so far"
    with folder.locked():
        pass  # what sweeps up after a kill leaves it
    assert (folder.journal("search", inputs) / "note").is_file()
    kept = folder.journal("search", inputs)
    folder.step("search", inputs, writes("policy"))
    assert not kept.exists()


def test_a_journal_of_other_inputs_is_cleared_away(folder: RunFolder) -> None:
    old = folder.journal("search", {"seed": 0})
    assert not any(folder.journal("search", {"seed": 1}).iterdir())
    assert not old.exists()
