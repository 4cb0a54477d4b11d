"""The quality benchmark keeps what it has measured under what that depends on, and its tables say what was measured."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from slimdeploy.config import Config, DataConfig, RestoreConfig, SearchConfig
from slimdeploy.policy import Layer

TINY = Config(
    data=DataConfig(calibration=4, search=4, train=8, validation=4, test=12),
    search=SearchConfig(generations=1, offspring=2, survivors=1, projector_steps=1),
    restore=RestoreConfig(steps=1, batch_size=4),
)
LAYERS = [Layer("a", "vision", 8, 128), Layer("b", "language", 8, 256)]


def figure(accuracy: float, **values: Any) -> Any:
    from quality_cells import Figure

    return Figure(
        **{
            "accuracy": accuracy,
            "questions": 100,
            "sparsity": 0.6,
            "bytes": 0,
            "chosen": "uniform",
            "eta": 0.0,
            "uniform_validation": 0.0,
            "searched_validation": 0.0,
            **values,
        }
    )


def printed(details: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for each in details:
        console.print(each)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_kind_of_cell_is_measured_and_what_cells_share_is_made_once(tmp_path: Path):
    from quality_cells import Cell, Setting
    from quality_measure import Workshop, measure

    workshop = Workshop(TINY, tmp_path, "model")
    searched = Setting(sparsity=0.6, method="evolution")
    masked = Setting("wanda", sparsity=0.6)
    joint = Setting(bytes=700_000, values=("int8", "int4"), method="evolution")
    measured = {
        setting: measure(Cell(setting, seed=1), workshop)
        for setting in (
            Setting(int3=True),
            searched,
            replace(searched, restore="sparse_lora"),
            Setting("atv", "2:4", 0.5),
            replace(masked, restore="lora"),
            joint,
        )
    }
    assert all(0 <= each.accuracy <= 1 and each.questions == 12 for each in measured.values())
    assert measured[Setting(int3=True)].sparsity == 0
    assert measured[searched].sparsity >= 0.6
    assert sum(cost.evaluations for cost in measured[searched].costs) > 0
    assert measured[searched].costs == measured[replace(searched, restore="sparse_lora")].costs
    assert 0 < measured[joint].bytes <= 700_000
    assert len(list((tmp_path / "statistics").glob("*/"))) == 3, "one for each criterion"
    assert len(list((tmp_path / "policies").glob("*/"))) == 5
    assert not list((tmp_path / "journals").iterdir())


def test_seeds_see_samples_of_their_own_and_the_same_questions(tmp_path: Path):
    from quality_cells import Cell, Setting
    from quality_measure import SEEDS, Workshop, samples_of

    workshop = Workshop(TINY, tmp_path, "model")
    seen = [samples_of(Cell(Setting(), seed), workshop) for seed in range(SEEDS)]
    for split in ("calibration", "search", "validation"):
        ids = [sample.id for samples in seen for sample in samples[split]]
        assert len(set(ids)) == len(ids) == 4 * SEEDS
    assert all(samples["test"] == seen[0]["test"] and samples["train"] == seen[0]["train"] for samples in seen)


def test_the_key_of_a_cell_follows_all_that_its_figure_depends_on(tmp_path: Path):
    from quality_cells import Cell, Setting
    from quality_measure import Workshop

    cell = Cell(Setting(sparsity=0.6, method="evolution", restore="lora"), 0)
    key = Workshop(TINY, tmp_path, "model").key(cell)
    longer = TINY.model_copy(update={"restore": RestoreConfig(steps=2)})
    fewer = TINY.model_copy(update={"data": DataConfig(test=11)})
    other = {
        Workshop(TINY, tmp_path, "another model").key(cell),
        Workshop(longer, tmp_path, "model").key(cell),
        Workshop(fewer, tmp_path, "model").key(cell),
        Workshop(TINY, tmp_path, "model").key(Cell(cell.setting, 1)),
        *(
            Workshop(TINY, tmp_path, "model").key(Cell(replace(cell.setting, **change), 0))
            for change in ({"eta": 0.0}, {"eta": 0.02}, {"projector": False}, {"sparsity": 0.7}, {"criterion": "atv"})
        ),
    }
    assert len(other) == 9
    assert key not in other
    unrestored = Cell(Setting(sparsity=0.6), 0)
    assert Workshop(TINY, tmp_path, "model").key(unrestored) == Workshop(longer, tmp_path, "model").key(unrestored)


def test_another_version_of_the_methods_ages_every_cell_and_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import quality_cells
    from quality_cells import Cell, Setting, key_of
    from quality_measure import Workshop

    cell = Cell(Setting(sparsity=0.6), 0)
    keys = [(Workshop(TINY, tmp_path, "model").key(cell), key_of(cell.policy_inputs(TINY), "model"))]
    monkeypatch.setattr(quality_cells, "METHOD_VERSION", quality_cells.METHOD_VERSION + 1)
    keys.append((Workshop(TINY, tmp_path, "model").key(cell), key_of(cell.policy_inputs(TINY), "model")))
    assert len({key for pair in keys for key in pair}) == 4


def test_criteria_share_a_policy_that_looks_at_none(tmp_path: Path):
    from quality_cells import Cell, Setting
    from quality_measure import Workshop

    workshop = Workshop(TINY, tmp_path, "model")
    for method, shared in (("ecoflap", True), ("uniform", True), ("owl", False), ("evolution", False)):
        cells = [Cell(Setting(criterion, sparsity=0.6, method=method), 0) for criterion in ("wanda", "atv")]
        one, other = (cell.policy_inputs(TINY) for cell in cells)
        assert (one == other) == shared
        assert len({workshop.key(cell) for cell in cells}) == 2


def test_finished_cells_outlive_the_process_and_can_be_forgotten(tmp_path: Path):
    from quality_cells import Cell, FinishedCells, Setting

    from slimdeploy.search import Cost

    file = tmp_path / "cells.json"
    measured = figure(0.5, costs=(Cost("search, 8 samples", 3, 100, 1.5),), seconds={"answers": 2.0})
    FinishedCells(file).add("key", Cell(Setting(sparsity=0.6), 2), measured)
    assert FinishedCells(file).figure("key") == measured
    assert json.loads(file.read_text())["key"]["setting"] == {"sparsity": 0.6}
    one, other = FinishedCells(file), FinishedCells(file)
    one.forget({"key"})
    other.add("another", Cell(Setting(sparsity=0.6), 3), measured)
    one.add("a third", Cell(Setting(sparsity=0.6), 4), measured)
    assert [key in FinishedCells(file) for key in ("key", "another", "a third")] == [False, True, True]


def test_cells_come_seed_by_seed_and_each_once():
    from quality import cells_of
    from quality_tables import parts

    cells = cells_of(list(parts(LAYERS).values()))
    assert len(set(cells)) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert {cell.seed for cell in cells_of(list(parts(LAYERS).values()), seeds=2)} == {0, 1}


def every_figure(accuracy: Callable[[Any], float]) -> Any:
    from quality import cells_of
    from quality_estimates import Figures
    from quality_tables import parts

    return Figures({cell: figure(accuracy(cell)) for cell in cells_of(list(parts(LAYERS).values()))})


def test_differences_are_paired_by_seed_and_named_in_words():
    from quality_cells import Setting
    from quality_estimates import signed
    from quality_tables import parts

    def accuracy(cell: Any) -> float:
        # Seeds differ by more than the search gains; SparseGPT's loses.
        gain = {"wanda": 0.02, "sparsegpt": -0.02}.get(cell.setting.criterion, 0)
        kept = 0.5 + 0.1 * cell.seed + gain * (cell.setting.method == "evolution") * (1 + 0.1 * cell.seed)
        return kept if cell.setting.has_seeds else 0.98

    figures = every_figure(accuracy)
    gained = figures.difference(Setting("wanda", sparsity=0.6, method="evolution"), Setting("wanda", sparsity=0.6))
    assert gained.mean == pytest.approx(2.4)
    assert gained.error == pytest.approx(np.std([2, 2.2, 2.4, 2.6, 2.8], ddof=1) / np.sqrt(5))
    assert signed(gained) == "+2.40 ± 0.14, better"
    text = printed(parts(LAYERS)["A"].details(figures))
    assert "-2.40 ± 0.14, worse" in text
    assert "+0.00 ± 0.00, no clear difference" in text
    rows = {row.name: row for part in parts(LAYERS).values() for row in part.rows(figures)}
    row = rows["wanda 60%, unrestored: search above uniform by two standard errors"]
    assert row.met
    assert row.goal == pytest.approx(2 * gained.error)


def test_a_goal_that_is_missed_is_a_row_that_says_no():
    from quality_tables import parts

    tables = parts(LAYERS)
    figures = every_figure(
        lambda cell: (
            (0.9 if cell.setting.has_seeds else 0.98)
            - 0.01 * (cell.setting.restore == "sparse_lora")
            - 0.001 * cell.seed
        )
    )
    rows = {row.name: row for row in tables["B"].rows(figures)}
    assert not rows["wanda, uniform 60%: sparse_lora above lora at equal steps"].met
    assert not rows["70%, restored: search above uniform"].met, "equal is not above"
    assert rows["60%, restored: search not below uniform by two standard errors"].met


def test_where_pruning_lost_nothing_the_goal_of_winning_back_is_missed_in_words(
    capsys: pytest.CaptureFixture[str],
):
    from quality_tables import parts
    from results import publish

    tables = parts(LAYERS)
    figures = every_figure(lambda cell: 0.9 if cell.setting.has_seeds and cell.seed else 0.98)
    rows = [row for row in tables["B"].rows(figures) if "won back" in row.name]
    words = "not applicable: pruning lost nothing with 1 of 3 seeds"
    assert len(rows) == 4
    assert all(row.value is None and not row.met and row.unit == words for row in rows)
    assert words in printed(tables["B"].details(figures))
    publish("quality", rows, keep=False)
    assert f"| {words} | at least 50 | no " in capsys.readouterr().out


def test_the_norm_term_is_compared_at_a_weight_that_is_not_zero():
    from quality_cells import Cell
    from quality_estimates import Figures
    from quality_tables import parts

    ablations = parts(LAYERS)["C"]
    searches = {setting for setting in ablations.settings() if setting.method == "evolution"}
    assert {setting.config(TINY, 0).search.eta for setting in searches} == {"auto", 0.0, 0.02}
    cells = [Cell(setting, seed) for setting in searches for seed in range(5)]
    text = printed(
        ablations.details(
            Figures(
                {
                    cell: figure(
                        0.5 + 0.01 * (cell.setting.eta == 0.02) + 0.001 * cell.seed, eta=0.05 if cell.seed > 2 else 0.0
                    )
                    for cell in cells
                }
            )
        )
    )
    assert text.count("| +1.00 ± 0.00, better | with 3 of 5 seeds |") == 2


def test_tables_of_a_run_that_has_just_begun_are_blank_and_promise_nothing():
    from quality_estimates import Figures
    from quality_tables import parts

    for part in parts(LAYERS).values():
        assert printed(part.details(Figures({})))
        assert not list(part.rows(Figures({})))


def test_int3_takes_seven_values_a_group_and_errs_less_than_at_its_largest_weight():
    from quality_measure import rounded_to_int3

    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    rounded = rounded_to_int3(weight)
    assert all(len(np.unique(group)) <= 7 for group in rounded.reshape(-1, 128))
    scale = np.abs(weight.reshape(4, 2, 128)).max(axis=2, keepdims=True) / 3
    plain = (np.rint(weight.reshape(4, 2, 128) / scale) * scale).reshape(weight.shape)
    assert np.square(rounded - weight).sum() < 0.8 * np.square(plain - weight).sum()
