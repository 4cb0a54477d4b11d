"""deploy.toml: what is documented is what is read, and what is wrong is told in a sentence."""

import tomllib
from datetime import date, time
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.config import Config, Target
from slimdeploy.config_file import EXAMPLE_TARGETS, load_config, parse_config, render_config
from slimdeploy.errors import ConfigError

ROOT = Path(__file__).parent.parent


def test_the_documented_example_gives_the_defaults() -> None:
    assert parse_config(tomllib.loads(render_config())) == Config(targets=EXAMPLE_TARGETS)


def test_the_repository_ships_the_documented_example() -> None:
    assert (ROOT / "deploy.toml").read_text() == render_config(), "write it anew with `slimdeploy init deploy.toml`"


def test_an_empty_file_is_a_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text("")
    assert load_config(tmp_path / "deploy.toml") == Config().anchored(tmp_path)


def test_a_model_may_be_given_by_name_alone() -> None:
    assert parse_config({"model": "llava-hf/llava-1.5-7b-hf"}).model.path == "llava-hf/llava-1.5-7b-hf"


def test_sparsity_zero_is_legal() -> None:
    assert parse_config({"search": {"budget": {"sparsity": 0}}}).search.budget.sparsity == 0


def test_a_budget_in_bytes_survives_rendering() -> None:
    tables = {"search": {"budget": {"bytes": 5}}, "export": {"onnx": {"weights": "packed"}}}
    config = parse_config(tables)
    assert (config.search.budget.sparsity, config.search.budget.binds) == (0, True)
    assert parse_config(tomllib.loads(render_config(config))) == config


def test_relative_paths_start_from_the_file_and_hub_names_stay(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "deploy.toml").write_text('model = "llava"\nout = "run"\n[data]\nsource = "vqa.jsonl"\n')
    config = load_config(tmp_path / "deploy.toml")
    assert config.model.path == str(tmp_path / "llava")
    assert config.out == str(tmp_path / "run")
    assert config.data.source == str(tmp_path / "vqa.jsonl")
    assert parse_config({"model": "some/name"}).anchored(tmp_path).model.path == "some/name"


def test_a_file_that_is_named_relatively_means_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deploy.toml").write_text('out = "run"\n[data]\nsource = "../vqa.jsonl"\n')
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("deploy.toml"))
    assert config.out == str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "deploy.toml").write_text(render_config(config))
    monkeypatch.chdir("/")
    assert load_config(tmp_path / "run" / "deploy.toml") == config


def test_a_tilde_is_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    tables = {"out": "~/run", "model": "~/llava", "data": {"source": "~/vqa.jsonl", "images": "~/images"}}
    config = parse_config(tables).anchored(tmp_path)
    assert [config.out, config.model.path, config.data.source, config.data.images] == [
        f"/home/someone/{name}" for name in ("run", "llava", "vqa.jsonl", "images")
    ]
    with pytest.raises(ConfigError, match="~nobody-of-this-name/x starts from the home of a user who is unknown"):
        parse_config({"out": "~nobody-of-this-name/x"}).anchored(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text('out = "run"', encoding="utf-8-sig")
    assert load_config(tmp_path / "deploy.toml").out == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"search": {"generationz": 3}}, "search.generationz is not a setting; did you mean 'generations'?"),
        ({"serch": {}}, "serch is not a setting; did you mean 'search'?"),
        ({"qqq": 1}, "qqq is not a setting; known are out, model"),
        ({"search": {"generations": "3"}}, 'search.generations = "3" should be a valid integer'),
        ({"search": {"budget": {"sparsity": 1.0}}}, "search.budget.sparsity = 1.0 should be less than 1"),
        ({"prune": {"criterion": "wnda"}}, "did you mean 'wanda'?"),
        ({"prune": {"pattern": "2;4"}}, "prune.pattern: '2;4' is no pattern; write 'unstructured', N:M with"),
        ({"prune": {"pattern": "0:4"}}, "prune.pattern: '0:4' is no pattern"),
        ({"prune": {"pattern": "5:4"}}, "keeps more weights than a group has"),
        ({"prune": {"pattern": "2:4"}}, "search.budget.sparsity = 0.6 is more than prune.pattern = '2:4' can remove"),
        ({"model": {"dtype": "float16"}}, "model.dtype = 'float16' rounds small gradients to zero"),
        ({"serve": 3}, "serve = 3"),
        ({"out": date(2024, 1, 1)}, "deploy.toml: out = 2024-01-01 is a date or time; write it in quotes"),
        ({"prune": {"skip": ["a", time(1, 2)]}}, "prune.skip.1 = 01:02:00 is a date or time"),
        ({"search": {"a\nb": 1}}, 'search."a\\nb" is not a setting'),
        ({"search": {"seed": 2**63}}, f"search.seed = {2**63} should be less than {2**63}"),
        ({"restore": {"seed": 2**70}}, f"restore.seed = {2**70} should be less than"),
        ({"model": {"device": "gpu"}}, 'model.device = "gpu"'),
        ({"serve": {"port": 70000}}, "serve.port = 70000"),
        ({"search": {"eta": "automatic"}}, "search.eta: 'automatic' is neither 'auto' nor a number from 0 on"),
        ({"search": {"eta": -1}}, "search.eta: -1 is neither"),
        ({"search": {"stages": [0.5, 0.25, 1.0]}}, "search.stages = [0.5, 0.25, 1.0] does not grow up to 1.0"),
        ({"search": {"stages": [0.5]}}, "search.stages = [0.5] does not grow up to 1.0"),
        ({"search": {"budget": {"bytes": 5, "sparsity": 0.5}}}, "asks for sparsity = 0.5 and bytes = 5; leave out"),
        ({"search": {"method": "owl", "budget": {"bytes": 5}}}, "search.method = 'owl' is a formula for sparsities"),
        (
            {"search": {"method": "uniform", "budget": {"bytes": 5}}},
            "cannot choose among search.values = ['int8', 'int4']",
        ),
        ({"search": {"budget": {"bytes": 5}}}, "export.onnx.weights = 'packed-int8' stores it otherwise; set 'packed'"),
        ({"search": {"budget": {"bytes": 5}}, "export": {"format": "vllm"}}, "'vllm' stores all weights dense"),
        (
            {"export": {"onnx": {"weights": "packed"}}},
            "only search.budget.bytes makes it say; set that, or 'packed-int8'",
        ),
        ({"targets": [{"max_ms": 3}]}, "targets.0.metric is missing"),
        ({"targets": [{"metric": "ttft", "percentile": 95, "max": 1}]}, "takes exactly the bound 'max_ms'"),
        ({"targets": [{"metric": "ttft", "max_ms": 1}]}, "needs a 'percentile'"),
        ({"targets": [{"metric": "accuracy", "min": 0.9, "percentile": 5}]}, "takes no 'percentile'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(tables)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slimdeploy init"):
        load_config(tmp_path / "deploy.toml")


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe\x00", b"a = " + b"9" * 5000, b"a = " + b"[" * 50_000])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "deploy.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"deploy\.toml"):
        load_config(tmp_path / "deploy.toml")


def test_a_goal_is_the_one_bound_that_its_metric_takes() -> None:
    assert Target(metric="ttft", percentile=95, max_ms=400).goal == 400
    assert Target(metric="ttft", percentile=95, max_ms=400).is_upper_bound
    assert Target(metric="accuracy", min=0.9).goal == 0.9
    assert not Target(metric="accuracy", min=0.9).is_upper_bound
