"""The papers' recipes, dry: every step that computes, on a tiny model and hand-made files of the published formats."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from published_sets import SUBJECTS, write_science_qa, write_vizwiz

from slimdeploy.config import Config
from slimdeploy.config_file import load_config, parse_config
from slimdeploy.inspection import inspect
from slimdeploy.model import load_model
from slimdeploy.pipeline import Run, opened_run
from slimdeploy.progress import Progress
from slimdeploy.samples import SPLITS
from slimdeploy.search.result import SearchResult

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("llava-1.5-7b-scienceqa", "llava-1.5-7b-2of4", "llava-1.5-7b-70")
FEW = {"calibration": 4, "search": 4, "train": 6, "validation": 4, "test": 6}
TRAINING_STEPS = 3


def recipe(name: str) -> Config:
    return load_config(RECIPES / f"{name}.toml")


def scaled_down(config: Config, model: Path, source: Path, out: Path) -> Config:
    """The recipe with a tiny model, few samples and few steps; all else stays."""
    tables = config.model_dump(by_alias=True)
    tables["out"] = str(out)
    tables["model"] |= {"path": str(model), "device": "cpu"}
    tables["data"] |= {"source": str(source), "batch_size": 2} | {
        split: min(FEW[split], tables["data"][split]) for split in SPLITS
    }
    tables["search"] |= {"generations": 2, "offspring": 3, "survivors": 2, "projector_steps": 1}
    tables["restore"] |= {"steps": TRAINING_STEPS, "batch_size": 2}
    tables["export"] |= {"verify_prompts": 2}
    tables["validate"] |= {"max_tokens": 4}
    return parse_config(tables)


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Every recipe's run, through to the restored checkpoint."""
    folder = tmp_path_factory.mktemp("recipes")
    sources = {
        "ScienceQA": write_science_qa(folder / "ScienceQA", train=16, test=6),
        "VizWiz": write_vizwiz(folder / "VizWiz", train=16, val=6),
    }
    finished = {}
    for name in NAMES:
        source = sources[Path(recipe(name).data.source).name]
        config = scaled_down(recipe(name), tiny_checkpoint, source, folder / name)
        with opened_run(config, Progress.silent()) as run:
            for step in (run.statistics, run.search, run.pruned, run.restored):
                step()
            finished[name] = run
    return finished


def test_every_recipe_is_tried() -> None:
    assert {file.stem for file in RECIPES.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_only_what_differs_from_the_defaults(name: str) -> None:
    defaults = Config().model_dump(by_alias=True)
    given = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    assert [key for key, value in leaves(given) if value == dict(leaves(defaults))[key]] == []


def leaves(tables: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_the_settings_are_the_papers() -> None:
    searched, two_of_four, seventy = map(recipe, NAMES)
    assert (searched.search.method, searched.data.search, searched.data.calibration) == ("evolution", 64, 64)
    assert searched.search.projector_steps > 0
    assert searched.restore.method == "none"
    assert (two_of_four.prune.pattern, two_of_four.search.budget.sparsity) == ("2:4", 0.5)
    assert (seventy.prune.pattern, seventy.search.budget.sparsity) == ("unstructured", 0.7)
    for config in (two_of_four, seventy):
        restore = config.restore
        assert (config.prune.criterion, config.search.method, restore.method) == ("wanda", "uniform", "sparse_lora")
        assert (restore.rank, restore.vision_rank, restore.alpha) == (8, 4, 16)
        assert (restore.learning_rate, restore.distillation) == (1e-4, 0.1)


def test_scienceqa_is_searched_with_the_projector_and_nothing_is_trained(runs: Mapping[str, Run]) -> None:
    run = runs["llava-1.5-7b-scienceqa"]
    found = SearchResult.load(run.search().path)
    assert found.chosen in ("evolution", "uniform")
    assert len(found.history) == 2
    assert run.restoration()["losses"] == []
    assert run.accuracy(run.restored()).by_kind.keys() == set(SUBJECTS)
    assert {sample.metric for sample in run.samples["test"]} == {"letter"}
    assert any(not sample.images for sample in run.samples["calibration"]), "some problems have no picture"


@pytest.mark.parametrize("name", NAMES[1:])
def test_vizwiz_restores_with_sparselora(runs: Mapping[str, Run], name: str) -> None:
    run = runs[name]
    assert len(run.restoration()["losses"]) == TRAINING_STEPS
    assert run.accuracy(run.restored()).by_kind.keys() == {"other", "unanswerable"}
    assert {sample.metric for sample in run.samples["test"]} == {"vqa"}


@pytest.mark.parametrize("name", NAMES)
def test_the_restored_checkpoint_is_as_sparse_as_the_recipe_says(runs: Mapping[str, Run], name: str) -> None:
    run = runs[name]
    kept = {row["name"]: row["kept"] for row in run.layer_rows()}
    rows = inspect(str(run.restored().path / "checkpoint"))
    assert {row["name"]: row["kept"] for row in rows} == kept
    weights = sum(layer.weights for layer in load_model(run.config.model.path).layers())
    assert 1 - sum(kept.values()) / weights >= run.config.search.budget.sparsity
    answers = json.loads((run.restored().path / "answers.json").read_text())
    assert len(answers) == FEW["test"]


def test_two_of_four_holds_in_every_group(runs: Mapping[str, Run]) -> None:
    model = load_model(str(runs["llava-1.5-7b-2of4"].restored().path / "checkpoint"))
    for layer in model.layers():
        groups = model.linear(layer.name).weight.reshape(-1, 4)
        assert int((groups != 0).sum(1).max()) == 2, layer.name
