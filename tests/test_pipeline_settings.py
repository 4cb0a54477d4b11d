"""The whole path with other settings than the usual: what is pruned, where the model is, what is left out."""

from pathlib import Path

import pytest
import torch
from runs import COUNTS, changed, configure, make_source

from slimdeploy.artifact import open_artifact
from slimdeploy.errors import ConfigError, PruneError
from slimdeploy.model import load_model
from slimdeploy.pipeline import opened_run, run_pipeline
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruned, apply_masks, set_weights

pytestmark = pytest.mark.usefixtures("traced_once")


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


def test_a_model_that_stays_on_disk_cannot_be_restored(source: Path, tmp_path: Path) -> None:
    config = changed(configure(source, tmp_path / "run"), model={"streamed": True}, search={"method": "uniform"})
    with opened_run(config, Progress.silent()) as run, pytest.raises(ConfigError, match=r"pruned/checkpoint"):
        run.restored()
    assert not (tmp_path / "run" / "search").exists(), "it is told before the search"


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
