"""The whole path with other settings than the usual: what is pruned, where the model is, what is left out."""

import json
from pathlib import Path

import pytest
import torch
from runs import COUNTS, changed, configure, make_source

from slimdeploy.artifact import open_artifact
from slimdeploy.errors import ConfigError, DataError, ModelError, PruneError
from slimdeploy.model import load_model
from slimdeploy.pipeline import opened_run, run_pipeline
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruned, apply_masks, set_weights

pytestmark = pytest.mark.usefixtures("traced_once")

IN_BYTES = {
    "search": {"method": "uniform", "values": ["int4"], "budget": {"bytes": 30_000}},
    "export": {"onnx": {"weights": "packed"}, "verify_prompts": 4},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"))


def test_sparsegpt_restores_from_the_weights_that_it_left(source: Path, tmp_path: Path) -> None:
    config = changed(
        configure(source, tmp_path / "run"), prune={"criterion": "sparsegpt"}, search={"method": "uniform"}
    )
    with opened_run(config, Progress.silent()) as run:
        pruned = Pruned.load(run.pruned().path)
        restored = load_model(str(run.restored().path / "checkpoint"))
        dense = load_model(str(source / "model"))
    left = pruned.weights
    assert left.keys() == pruned.masks.keys()
    for name, mask in pruned.masks.items():
        assert not left[name][~mask].any()
        # Three small steps from where pruning ended, which is not where the checkpoint was.
        moved, away = (
            (restored.linear(name).weight - start)[mask].norm() for start in (left[name], dense.linear(name).weight)
        )
        assert moved < away


def test_a_head_that_is_pruned_is_shipped_without_its_zeros(source: Path, tmp_path: Path) -> None:
    config = changed(configure(source, tmp_path / "run"), prune={"include": ["lm_head"]}, search={"method": "uniform"})
    with opened_run(config, Progress.silent()) as run:
        layers = {layer["name"]: layer for layer in open_artifact(run.artifact().path).manifest.layers}
        restored = load_model(str(run.restored().path / "checkpoint")).linear("lm_head").weight
    assert layers["lm_head"]["sparsity"] == 0.5
    assert float((restored == 0).float().mean()) == 0.5
    assert layers["lm_head"]["bytes"] < restored.numel()  # a byte each, were it stored as it is


@pytest.mark.parametrize(
    ("method", "prune"),
    [
        ("uniform", {"criterion": "wanda"}),
        ("evolution", {"criterion": "wanda"}),
        ("uniform", {"criterion": "sparsegpt", "include": ["lm_head"]}),
    ],
)
def test_a_model_that_stays_on_disk_is_pruned_as_one_in_memory(
    source: Path, tmp_path: Path, method: str, prune: dict[str, object]
) -> None:
    states, policies = [], []
    for streamed in (True, False):  # in one folder: what the one has pruned must not pass for the other's
        config = changed(
            configure(source, tmp_path / "run"),
            model={"streamed": streamed},
            prune=prune,
            search={"method": method, "projector_steps": 0, "start": ["owl"]},
        )
        with opened_run(config, Progress.silent()) as run:
            folder = run.pruned().path
            policies.append((run.search().path / "policy.json").read_text())
        model = load_model(str(folder / "checkpoint" if streamed else source / "model"))
        if not streamed:
            pruned = Pruned.load(folder)
            apply_masks(model, pruned.masks)
            set_weights(model, pruned.weights)
        states.append(model.module.state_dict())
    assert policies[0] == policies[1]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("criterion", "tables"),
    [
        ("wanda", {"search": {"method": "uniform"}, "prune": {"pattern": "2:4"}}),
        (
            "sparsegpt",
            {"search": {"method": "uniform"}, "prune": {"include": ["lm_head"]}, "model": {"dtype": "bfloat16"}},
        ),
        ("wanda", IN_BYTES),
        ("sparsegpt", IN_BYTES),
    ],
)
def test_a_model_that_was_pruned_on_disk_is_restored_as_one_in_memory(
    source: Path, tmp_path: Path, criterion: str, tables: dict[str, dict[str, object]]
) -> None:
    states, answers = [], []
    for streamed in (True, False):
        config = changed(configure(source, tmp_path / f"streamed-{streamed}"), **tables)
        config = changed(config, model={"streamed": streamed}, prune={"criterion": criterion})
        with opened_run(config, Progress.silent()) as run:
            stages = run.stages()
            answers.append([run.answers(step) for step in stages.values()])
            states.append(load_model(str(stages["restored"].path / "checkpoint")).module.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert answers[0] == answers[1]


def test_a_model_that_was_pruned_on_disk_is_shipped_and_measured(source: Path, tmp_path: Path) -> None:
    config = changed(configure(source, tmp_path / "run"), model={"streamed": True}, search={"method": "uniform"})
    report = run_pipeline(config, Progress.silent())
    assert report.accuracy.keys() == {"dense", "pruned", "restored", "artifact"}


def test_what_stays_on_disk_is_pruned_on_the_cpu_and_the_report_says_so(source: Path, tmp_path: Path) -> None:
    config = changed(
        configure(source, tmp_path / "run"), model={"streamed": True, "device": "cuda"}, search={"method": "uniform"}
    )
    with opened_run(config, Progress.silent()) as run:
        assert any("on the CPU, not on cuda" in note for note in run.pruned().notes)


def test_a_search_needs_no_answers_of_the_test_split(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    test = source / "data" / "test.jsonl"
    unanswered = [json.loads(line) | {"answers": []} for line in test.read_text().splitlines()]
    test.write_text("\n".join(map(json.dumps, unanswered)))
    with opened_run(configure(source, tmp_path / "run"), Progress.silent()) as run:
        assert run.search().path.is_dir()
        for step in (run.pruned, run.restored, run.artifact):
            with pytest.raises(DataError, match="has no answer"):
                step()


def test_all_calibration_samples_verify_where_there_are_fewer_than_asked(source: Path, tmp_path: Path) -> None:
    config = changed(
        configure(source, tmp_path / "run"), search={"budget": {"sparsity": 0}}, export={"verify_prompts": 99}
    )
    with opened_run(config, Progress.silent()) as run:
        verification = open_artifact(run.artifact().path).manifest.verification
    assert verification["prompts"] == config.data.calibration < 99


def test_what_is_too_large_for_memory_is_told_what_to_do(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(configure(source, tmp_path / "run"), model={"streamed": True}, search={"method": "uniform"})
    monkeypatch.setattr("slimdeploy.model.free_memory", lambda: 100_000)
    with opened_run(config, Progress.silent()) as run:
        assert (run.pruned().path / "checkpoint").is_dir(), "searching and pruning read a block at a time"
        with pytest.raises(ModelError, match=r"takes 0\.\d GB in float32, and 0\.0 GB .* larger machine"):
            run.restored()
    monkeypatch.undo()
    with opened_run(config, Progress.silent()) as run:
        assert run.restored().path.is_dir()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {
                "search": {"values": ["int8"], "budget": {"bytes": 1000}},
                "export": {"onnx": {"weights": "packed"}, "verify_prompts": 4},
            },
            "bytes = 1,000 cannot be met",
        ),
        ({"data": {"validation": 1}}, "6 search and 1 validation samples; it needs at least 1 and 2"),
        ({"prune": {"skip": ["nothing.*"]}}, r"prune.skip = 'nothing.\*' names no layer"),
    ],
)
def test_what_cannot_be_met_is_told_before_anything_runs(
    source: Path, tmp_path: Path, tables: dict[str, dict[str, object]], message: str
) -> None:
    config = changed(configure(source, tmp_path / "run"), **tables)
    with pytest.raises(PruneError, match=message):
        run_pipeline(config, Progress.silent())
    assert not (tmp_path / "run" / "dense").exists()


def test_what_the_steps_note_stands_in_the_report_of_a_run_that_goes_on_too(source: Path, tmp_path: Path) -> None:
    config = changed(
        configure(source, tmp_path / "run", format_="vllm"), prune={"criterion": "wanda", "propagate": "pruned"}
    )
    reports = [run_pipeline(config, Progress.silent()) for _ in range(2)]
    for report in reports:
        assert sum("prune.propagate ships what pruned ones do" in note for note in report.notes) == 1


def test_sparsity_zero_only_exports(source: Path, tmp_path: Path) -> None:
    config = configure(source, tmp_path / "run", sparsity=0.0)
    report = run_pipeline(config, Progress.silent())
    assert report.accuracy.keys() == {"dense", "artifact"}
    assert open_artifact(tmp_path / "run").manifest.sparsity == 0
    with opened_run(config, Progress.silent()) as run, pytest.raises(ConfigError, match="nothing to search"):
        run.search()


def test_an_export_without_an_engine_here_says_what_to_do(source: Path, tmp_path: Path) -> None:
    report = run_pipeline(configure(source, tmp_path / "run", sparsity=0.0, format_="vllm"), Progress.silent())
    assert report.run is None
    assert not report.met, "a target that could not be measured is not met"
    assert any("slimdeploy validate URL" in note for note in report.notes)


def test_a_split_with_fewer_samples_than_asked_for_is_told_and_stands_in_the_report(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, words: said.append(words))
    config = configure(source, tmp_path / "run", sparsity=0.0, format_="vllm")
    note = f"{source / 'data'} has {COUNTS['train']} of the 60 samples that data.train asks for."
    assert note not in run_pipeline(config, Progress.silent()).notes + tuple(said)
    report = run_pipeline(changed(config, data={"train": 60}), Progress.silent())
    assert said.count(note) == report.notes.count(note) == 1
