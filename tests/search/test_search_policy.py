"""The whole search on a tiny model: within budget, deterministic, resumed, and uniform wins where it is better."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import SAMPLES, judge_on, run_search, short_search
from tiny import make_samples

from slimdeploy.config import BudgetConfig, PruneConfig
from slimdeploy.errors import PruneError
from slimdeploy.model import Model
from slimdeploy.policy import Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Stats
from slimdeploy.samples import Sample, Split
from slimdeploy.search import Outcome, Space, formulas, model_search
from slimdeploy.search.fitness import ModelJudge, PrunedModel
from slimdeploy.search.result import SearchResult


def test_the_result_is_within_budget_and_repeats_by_seed(tiny_model: Model, stats: Stats) -> None:
    first, second = (run_search(tiny_model, stats, short_search()) for _ in range(2))
    assert first.policy == second.policy
    assert first.history == second.history
    assert first.projector.keys() == second.projector.keys()
    assert all(torch.equal(first.projector[name], tensor) for name, tensor in second.projector.items())
    assert first.policy.sparsity(tiny_model.layers()) >= 0.5


def test_a_search_ends_no_worse_than_the_formulas_that_it_starts_from(tiny_model: Model, stats: Stats) -> None:
    short = {"generations": 1, "offspring": 1, "survivors": 1, "eta": 0.0, "projector_steps": 0}
    judge = judge_on(tiny_model, stats, SAMPLES["search"])

    def j(policy: Policy) -> float:
        (loss,) = next(iter(judge.losses([policy], range(1))))
        return loss.divergence + loss.answers

    formulas = [run_search(tiny_model, stats, short_search(method=method)).policy for method in ("owl", "ecoflap")]
    found = {
        start: run_search(tiny_model, stats, short_search(start=start, **short)) for start in ((), ("owl", "ecoflap"))
    }
    assert found["owl", "ecoflap"].history[0].best <= min(map(j, formulas)) + 1e-6
    assert found["owl", "ecoflap"].history[0].uniform == found[()].history[0].uniform
    assert {cost.of for cost in found["owl", "ecoflap"].costs} - {cost.of for cost in found[()].costs} == {"ecoflap"}


@pytest.mark.parametrize(
    ("settings", "answered", "left_out"),
    [
        ({"budget": BudgetConfig(bytes=40_000), "values": ("int8",)}, True, {"owl", "ecoflap"}),
        ({"start": ()}, True, {"owl", "ecoflap"}),
        ({}, False, {"ecoflap"}),
        ({}, True, set()),
    ],
)
def test_the_search_starts_from_the_formulas_that_can_be_computed(
    tiny_model: Model, stats: Stats, settings: dict[str, Any], answered: bool, left_out: set[str]
) -> None:
    asked: list[str] = []

    def noted(formula: Any, task: Any) -> Policy:
        asked.append(formula)
        policy: Policy = task.space.uniforms()[0]
        return policy

    samples = SAMPLES if answered else {**SAMPLES, "search": make_samples(4, answered=False)}
    short = {"generations": 1, "offspring": 1, "survivors": 1, "projector_steps": 0, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "policy_by", noted)
        run_search(tiny_model, stats, short_search(**short), samples, progress=(progress := Progress.silent()))
    assert set(asked) == {"owl", "ecoflap"} - left_out
    assert len(progress.notes) == (left_out == {"ecoflap"}), "what was to be done and was not stands in the report"


def test_too_few_samples_are_refused_before_anything_is_computed(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "zeroth_order_slope", lambda *_: pytest.fail("ECoFLaP was asked"))
    with pytest.raises(PruneError, match="4 search and 1 validation samples"):
        run_search(tiny_model, stats, short_search(), {**SAMPLES, "validation": make_samples(1)})


def test_the_bar_tells_the_best_j_and_that_of_uniform(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Noting:
        def advance(self, note: str = "", count: int = 1) -> None:
            told.extend([note] * count)

    monkeypatch.setattr(Progress, "bar", lambda *_, **__: Noting())
    result = run_search(tiny_model, stats, short_search())
    expected = [f"best J {each.best:.3f}, uniform {each.uniform:.3f}" for each in result.history]
    assert [note for note in told if "J" in note] == expected


def test_a_search_that_was_killed_goes_on_where_it_was(
    tiny_model: Model, stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_search(generations=6, projector_learning_rate=1e-3)
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    undisturbed = run_search(tiny_model, stats, config)
    judged: list[Policy] = []
    apply, limit = PrunedModel.apply, 14

    def counted(self: PrunedModel, policy: Policy) -> None:
        judged.append(policy)
        if len(judged) == limit:
            raise KeyboardInterrupt
        apply(self, policy)

    monkeypatch.setattr(PrunedModel, "apply", counted)
    kills, result = 0, None
    while result is None:
        judged.clear()
        tiny_model.module.load_state_dict(before)  # as a new process loads it
        try:
            result = run_search(tiny_model, stats, config, journal=tmp_path)
        except KeyboardInterrupt:
            kills += 1
            assert kills < 20, "the search does not get any further"
    assert kills >= 2, "the search was not killed often enough to tell"
    assert (result.policy, result.history) == (undisturbed.policy, undisturbed.history)
    assert (result.eta, result.eta_rankings) == (undisturbed.eta, undisturbed.eta_rankings)
    assert [replace(cost, seconds=0) for cost in result.costs] == [
        replace(cost, seconds=0) for cost in undisturbed.costs
    ]
    assert result.projector.keys() == undisturbed.projector.keys()
    assert all(torch.equal(result.projector[name], tensor) for name, tensor in undisturbed.projector.items())


def test_the_model_comes_out_dense(tiny_model: Model, stats: Stats) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    run_search(tiny_model, stats, short_search(projector_learning_rate=1e-2))
    for name, parameter in tiny_model.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


@pytest.mark.parametrize("calls", [1, 5, 9])
def test_the_model_comes_out_dense_from_a_search_that_fails(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    proxy_loss, left = ModelJudge.proxy_loss, iter(range(calls))

    def failing(self: ModelJudge, part: int) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return proxy_loss(self, part)

    monkeypatch.setattr(ModelJudge, "proxy_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        run_search(tiny_model, stats, short_search(generations=9, projector_learning_rate=1e-2))
    for name, parameter in tiny_model.module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_uniform_is_returned_where_it_wins_held_out(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worst(space: Space, *_: object) -> Any:
        policy = space.policy(space.levels[-1]).with_level(space.layers[0].name, space.levels[0])
        return Outcome(policy, ())

    monkeypatch.setattr(model_search, "evolve", worst)
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, words: said.append(words))
    result = run_search(tiny_model, stats, short_search())
    assert result.chosen == "uniform"
    assert any(line.endswith("the uniform policy is taken") for line in said)
    assert result.uniform_validation is not None
    assert result.searched_validation is not None
    assert result.uniform_validation <= result.searched_validation
    assert len(set(result.policy.levels.values())) == 1


@pytest.mark.parametrize("settings", [{"method": "uniform"}, {"budget": BudgetConfig(sparsity=0)}])
def test_what_needs_no_search_is_not_searched(tiny_model: Model, settings: dict[str, Any]) -> None:
    result = run_search(tiny_model, Stats(), short_search(**settings), {})
    assert result.chosen == "uniform"
    assert result.history == ()


def test_where_one_policy_is_within_the_budget_no_formula_is_asked(tiny_model: Model, stats: Stats) -> None:
    config = short_search(start=("ecoflap",), budget=BudgetConfig(sparsity=0.5))
    config = config.model_copy(update={"prune": PruneConfig(criterion="wanda", pattern="2:4")})
    result = run_search(tiny_model, stats, config)
    assert {level.pattern for level in result.policy.levels.values()} == {"2:4"}
    assert "ecoflap" not in {cost.of for cost in result.costs}


@pytest.mark.parametrize("pattern", ["2:4", "*:8"])
def test_patterns_in_groups_are_searched(tiny_model: Model, stats: Stats, pattern: str) -> None:
    config = short_search(generations=1, budget=BudgetConfig(sparsity=0.4))
    result = run_search(
        tiny_model, stats, config.model_copy(update={"prune": PruneConfig(criterion="wanda", pattern=pattern)})
    )
    assert {level.group for level in result.policy.levels.values()} <= {0, int(pattern[2:])}
    assert result.policy.sparsity(tiny_model.layers()) >= 0.4


def test_without_samples_there_is_no_search(tiny_model: Model, stats: Stats) -> None:
    with pytest.raises(PruneError, match="needs at least 1 and 2"):
        run_search(tiny_model, stats, short_search(), {"search": [], "validation": []})


def test_samples_without_answers_are_searched_on_by_divergence(tiny_model: Model, stats: Stats) -> None:
    unknown: dict[Split, Sequence[Sample]] = {
        split: [replace(sample, answers=()) for sample in samples] for split, samples in SAMPLES.items()
    }
    result = run_search(tiny_model, stats, short_search(generations=1, eta=0.0), unknown)
    assert result.searched_validation is not None
    assert 0 < result.searched_validation < 10


def test_a_saved_result_loads_equal(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    result = run_search(tiny_model, stats, short_search(projector_learning_rate=1e-3))
    result.save(tmp_path)
    again = SearchResult.load(tmp_path)
    assert replace(again, projector={}) == replace(result, projector={})
    assert all(torch.equal(again.projector[name], tensor) for name, tensor in result.projector.items())
