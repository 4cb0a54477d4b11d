"""The whole path on a tiny random model: what a kill, a changed setting or an altered file leads to."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from runs import COUNTS, configure, make_source

import slimdeploy
from slimdeploy.artifact import open_artifact
from slimdeploy.cli import main
from slimdeploy.config import Config, Target
from slimdeploy.config_file import load_config, render_config
from slimdeploy.errors import ArtifactError
from slimdeploy.inspection import evaluate, inspect
from slimdeploy.pipeline import Run, opened_run, run_pipeline
from slimdeploy.progress import Progress
from slimdeploy.report import read_json
from slimdeploy.serve.engine import greedy
from slimdeploy.validation import validate

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that went through, for tests that only look at it."""
    config = configure(source, tmp_path_factory.mktemp("finished") / "run", compare="dense-fp32")
    run_pipeline(config, Progress.silent())
    return config


def artifact_bytes(config: Config) -> dict[str, bytes]:
    folder = Path(config.out) / "artifact"
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_ends_in_a_report_with_every_stage(finished: Config) -> None:
    report = json.loads((Path(finished.out) / "report.json").read_text())
    assert report["accuracy"]["dense"] == 0.5
    assert report["accuracy"]["artifact"] == report["accuracy"]["restored"]
    assert report["accuracy_standard_error"]["pruned"] is not None
    assert report["size_bytes"]["dense"] > 0
    assert report["size_bytes"]["artifact"] == open_artifact(Path(finished.out)).bytes
    assert [target["met"] for target in report["targets"]] == [True, True]
    assert (Path(finished.out) / "report.html").stat().st_size > 0
    assert (Path(finished.out) / "search" / "history.svg").read_text().startswith("<svg")


def test_torch_the_export_and_the_endpoint_agree(finished: Config) -> None:
    report = json.loads((Path(finished.out) / "report.json").read_text())
    agreement = report["agreement"]
    assert agreement["onnx_endpoint"] == 1.0
    # torch answers with float32 weights, the export with eight bits, and logits of a random model lie close together.
    # The export was held against torch with rounded weights, token for token; here equal answers have to be counted.
    torch_answers, onnx_answers = (
        json.loads((Path(finished.out) / step / "answers.json").read_text()) for step in ("restored", "engine")
    )
    equal = sum(one == other for one, other in zip(torch_answers, onnx_answers, strict=True))
    assert agreement["torch_onnx"] == agreement["torch_endpoint"] == equal / COUNTS["test"] > 0
    verification = open_artifact(Path(finished.out)).manifest.verification
    assert verification["prompts"] == finished.export.verify_prompts > 0


def test_the_artifact_is_as_sparse_as_the_budget_asks(finished: Config) -> None:
    manifest = open_artifact(Path(finished.out)).manifest
    assert manifest.sparsity >= 0.5
    kept = {row["name"]: row["kept"] for row in manifest.layers}
    counted = {row["name"]: row["kept"] for row in inspect(str(Path(finished.out) / "restored" / "checkpoint"))}
    assert counted == kept


def test_the_report_says_what_packing_gains_and_what_it_does_not(finished: Config) -> None:
    report = read_json(Path(finished.out) / "report.json")
    assert report.comparison is not None
    ours, other = report.comparison.artifact, report.comparison.other
    assert (ours.weights, other.weights) == ("packed-int8", "dense-fp32")
    assert ours.bytes == open_artifact(Path(finished.out)).bytes < other.bytes
    assert ours.first_token_ms > 0 < other.first_token_ms
    assert any("caches" in note or "kernels" in note for note in report.notes)
    page = (Path(finished.out) / "report.html").read_text()
    assert "Beside dense-fp32" in page
    assert "times the size" in page


def test_the_run_folder_holds_its_settings(finished: Config) -> None:
    assert load_config(Path(finished.out) / "deploy.toml") == finished


def test_a_finished_run_repeats_no_step(finished: Config) -> None:
    before = {path: path.stat().st_mtime_ns for path in (Path(finished.out) / "inputs").iterdir()}
    with opened_run(finished, Progress.silent()) as run:
        run.artifact()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name.removesuffix(".json").removesuffix(".notes") for path in before} == {
        *("dense", "statistics", "search", "pruned", "restored", "artifact", "compared", "engine"),
    }


def test_evaluate_agrees_with_the_report(finished: Config) -> None:
    report = json.loads((Path(finished.out) / "report.json").read_text())
    artifact, dense = evaluate(finished.out, finished, Progress.silent())
    assert artifact.value == report["accuracy"]["artifact"]
    assert dense is not None
    assert dense.value == report["accuracy"]["dense"] == 0.5
    assert (dense.standard_error, dense.count) == (report["accuracy_standard_error"]["dense"], COUNTS["test"])
    found, none = evaluate(finished.model.path, finished, Progress.silent())
    assert (found.value, none) == (0.5, None)
    restored = str(Path(finished.out) / "restored" / "checkpoint")
    assert evaluate(restored, finished, Progress.silent())[0].value == report["accuracy"]["restored"]


def test_changed_answers_train_and_score_again(source: Path, finished: Config, tmp_path: Path) -> None:
    def inputs(data: Path) -> list[str]:
        config = finished.model_copy(update={"data": finished.data.model_copy(update={"source": str(data)})})
        hashes = Run(config, Progress.silent()).hashes
        return [*hashes["train"], *hashes["test"]]

    changed = tmp_path / "data"
    shutil.copytree(source / "data", changed)
    assert inputs(changed) == inputs(source / "data")
    lines = (changed / "train.jsonl").read_text().splitlines()
    (changed / "train.jsonl").write_text("\n".join(json.dumps(json.loads(x) | {"answers": ["other"]}) for x in lines))
    assert inputs(changed) != inputs(source / "data")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_export_never_takes_the_place_of_something_else(finished: Config, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    if kind == "folder":
        target.mkdir()
        target /= "thesis.txt"
    target.write_text("!")
    export = finished.export.model_copy(update={"format": "checkpoint"})
    with opened_run(finished, Progress.silent()) as run, pytest.raises(ArtifactError, match="no artifact"):
        run.export_to(tmp_path / "precious", export)
    assert target.read_text() == "!"


def test_another_format_leaves_the_run_as_it_was(finished: Config, tmp_path: Path) -> None:
    before = artifact_bytes(finished)
    with opened_run(finished, Progress.silent()) as run:
        run.export_to(tmp_path / "other", finished.export.model_copy(update={"format": "checkpoint"}))
    assert open_artifact(tmp_path / "other").manifest.format == "checkpoint"
    assert artifact_bytes(finished) == before
    assert load_config(Path(finished.out) / "deploy.toml") == finished


def test_an_artifact_that_is_replaced_takes_its_report_with_it(finished: Config, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "run")
    export = finished.export.model_copy(update={"format": "checkpoint"})
    config = finished.model_copy(update={"out": str(tmp_path / "run"), "export": export})
    said = io.StringIO()
    with opened_run(config, Progress(Console(file=said, width=200))) as run:
        run.artifact()
    assert open_artifact(tmp_path / "run").manifest.format == "checkpoint"
    assert not list((tmp_path / "run").glob("report.*"))
    assert "the report was about the artifact before" in said.getvalue()


def test_validating_again_keeps_the_report_of_the_run(finished: Config) -> None:
    before = (Path(finished.out) / "report.json").read_bytes()
    report, folder = validate(finished.out, finished, Progress.silent())
    assert report.accuracy["dense"] is not None
    assert (Path(finished.out) / "report.json").read_bytes() == before
    assert json.loads((folder / "report.json").read_text())["accuracy"]["artifact"] is not None


def test_the_commands_show_what_a_run_left(
    finished: Config, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    settings = Path(finished.out) / "deploy.toml"
    assert "all targets met" in shown("run", settings)
    assert "all targets met" in shown("validate", finished.out, "--targets", settings, "--output", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()
    for command, measured in (("search", ""), ("prune", "pruned"), ("restore", "restored")):
        said = shown(command, settings)
        assert "kept" in said
        assert said.partition(" accuracy on")[0].endswith(measured)
        assert ("accuracy on" in said) == bool(measured)
    assert f"onnx artifact: {finished.out}/artifact" in shown("export", settings)
    assert "50.0" in shown("evaluate", finished.model.path, "--data", settings)
    evaluated = shown("evaluate", settings)
    accuracy = json.loads((Path(finished.out) / "report.json").read_text())["accuracy"]
    for stage in ("dense", "pruned", "restored"):
        table = evaluated.partition(f"{stage} accuracy on the test split")[2].partition("accuracy on")[0]
        assert f"{100 * accuracy[stage]:.1f} ±" in table
        assert f"{100 * accuracy[stage] / accuracy['dense']:.1f}%" in table
    assert "unstructured" in shown("inspect", finished.out)
    assert "as found" in shown("inspect", finished.model.path)
    picture = next((source / "data").glob("*.png"))
    assert shown("ask", finished.out, "--image", picture, "--max-tokens", 4, "What is it?").endswith("\n")


def test_a_missed_target_is_exit_code_one(finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    impossible = finished.model_copy(update={"targets": (Target(metric="accuracy", min=1.1),)})
    (tmp_path / "deploy.toml").write_text(render_config(impossible))
    arguments = ["validate", finished.out, "--targets", tmp_path / "deploy.toml", "--output", tmp_path / "report"]
    assert main([str(argument) for argument in arguments]) == 1
    assert "1 of 1 targets missed" in capsys.readouterr().out


def test_a_run_and_an_artifact_open_from_python(finished: Config) -> None:
    assert slimdeploy.run(Path(finished.out) / "deploy.toml").met
    assert isinstance(slimdeploy.load(finished.out).ask("What is it?", sampling=greedy(2)), str)


def test_accuracies_on_other_samples_are_no_measure_for_these(finished: Config, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "data", tmp_path / "data")
    lines = (tmp_path / "data" / "test.jsonl").read_text().splitlines()
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines[1:]))
    other = finished.model_copy(
        update={
            "data": finished.data.model_copy(update={"source": str(tmp_path / "data")}),
            "targets": (Target(metric="accuracy_retention", min=0.1),),
        }
    )
    report, _ = validate(finished.out, other, Progress.silent(), tmp_path / "report")
    assert report.accuracy.keys() == {"artifact"}
    assert report.targets[0].measured is None
    assert any("another test split" in note for note in report.notes)


@pytest.mark.parametrize("artifact", [".", "artifact"])
def test_the_settings_of_a_run_count_for_its_artifact(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], artifact: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy.toml").write_text('[data]\nsource = "nowhere.jsonl"\n')
    assert main(["evaluate", str(Path(finished.out) / artifact)]) == 0
    shown = capsys.readouterr().out
    assert f"{COUNTS['test']}" in shown
    assert "kept of dense" in shown


def run_silently(config: Config) -> None:
    run_pipeline(config, Progress.silent())


def kill_when(condition: Callable[[], bool], config: Config) -> None:
    """Start the run in a process of its own and kill it, hard, once the condition holds."""
    process = multiprocessing.get_context("fork").Process(target=run_silently, args=(config,))
    process.start()
    deadline = time.monotonic() + 300
    while not condition():
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_run_killed_in_every_step_ends_with_the_same_artifact(source: Path, finished: Config, tmp_path: Path) -> None:
    config = configure(source, tmp_path / "run")
    for step in ("dense", "statistics", "search", "pruned", "restored", "artifact", "engine"):
        kill_when(lambda step=step: any((tmp_path / "run").glob(f".{step}.*.partial")), config)
        assert not (tmp_path / "run" / step).exists()
    run_silently(config)
    assert artifact_bytes(config) == artifact_bytes(finished)


def test_a_killed_restoration_goes_on_and_arrives_at_the_same_weights(finished: Config, tmp_path: Path) -> None:
    def restored(name: str) -> tuple[Config, Path]:
        """A copy of the finished run that is to train for longer."""
        shutil.copytree(finished.out, tmp_path / name)
        restore = finished.restore.model_copy(update={"steps": 35})
        return finished.model_copy(update={"out": str(tmp_path / name), "restore": restore}), tmp_path / name

    (killed, folder), (through, whole) = restored("killed"), restored("through")
    state = ".journals/restored/*/training.safetensors"
    kill_when(lambda: any(folder.glob(state)), killed)
    said = io.StringIO()
    for config, progress in ((killed, Progress(Console(file=said, width=200))), (through, Progress.silent())):
        with opened_run(config, progress) as run:
            run.restored()
    assert "goes on after step" in said.getvalue()
    for file in ("checkpoint/model.safetensors", "restoration.json", "answers.json"):
        assert (folder / "restored" / file).read_bytes() == (whole / "restored" / file).read_bytes()
    assert not list(folder.glob(state))
