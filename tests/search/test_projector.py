"""Projector evolution: steps that help held-out samples are kept, all others leave no trace."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searching import judge_on, run_search, short_search, uniform
from tiny import make_samples

from slimdeploy.config import SearchConfig
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.prune import Stats
from slimdeploy.search.cost import Ledger
from slimdeploy.search.eta import EtaChoice
from slimdeploy.search.fitness import ModelJudge
from slimdeploy.search.journal import Journal
from slimdeploy.search.projector import ProjectorEvolution


def _evolution(
    model: Model,
    stats: Stats,
    journal: Path,
    settings: SearchConfig,
    held_out: Callable[[Sequence[Policy]], list[float]],
) -> ProjectorEvolution:
    train = judge_on(model, stats, make_samples(2), make_samples(2, seed=3))
    return ProjectorEvolution(train, held_out, settings, Journal(journal), Ledger())


def test_projector_steps_that_do_not_help_held_out_samples_are_dropped_and_not_taken_again(
    tiny_model: Model, stats: Stats, tmp_path: Path
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    verdicts = iter([[1.0, 3.0], [2.0, 2.0]])
    settings = SearchConfig(projector_learning_rate=1.0)
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    policies = [uniform(tiny_model, DENSE), uniform(tiny_model, Level(0.5))]
    assert not evolution.refine(policies)
    assert evolution.weights == {}
    assert evolution.train.version == 0
    evolution.train.pruned.apply(policies[0])
    assert all(torch.equal(parameter, before[name]) for name, parameter in tiny_model.module.named_parameters())
    assert not evolution.refine(policies), "a call passes without a try"
    assert not evolution.refine(policies), "no third verdict is asked for"


def test_samples_without_a_picture_do_not_move_the_projector(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    verdicts = iter([[1.0], [0.5]])
    samples = [replace(sample, images=()) for sample in make_samples(2)]
    train = judge_on(tiny_model, stats, samples)
    evolution = ProjectorEvolution(train, lambda _: next(verdicts), SearchConfig(), Journal(tmp_path), Ledger())
    old = evolution.parameters()
    assert evolution.refine([uniform(tiny_model, Level(0.5))])
    assert all(torch.equal(evolution.weights[name], parameter) for name, parameter in old.items())


def test_steps_that_are_too_small_for_the_models_type_add_up(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    tiny_model.module.to(torch.bfloat16)
    verdicts = iter([[1.0], [0.5], [0.5], [0.4]])
    settings = SearchConfig(projector_steps=3, projector_learning_rate=1e-6)
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    old = evolution.parameters()
    assert evolution.refine([uniform(tiny_model, DENSE)])
    assert all(torch.equal(evolution.parameters()[name], tensor) for name, tensor in evolution.weights.items())
    assert evolution.refine([uniform(tiny_model, DENSE)])
    (name, *_) = (name for name in old if name.endswith("linear_2.weight"))
    moved = (evolution.weights[name] - old[name]).abs().mean()
    assert 2e-6 < float(moved) < 8e-6, "six steps of Adam, each about as long as the learning rate"
    assert tiny_model.linear(name.removesuffix(".weight")).weight.dtype == torch.bfloat16


def test_steps_keep_nothing_for_the_gradients_of_other_weights(
    tiny_model: Model, stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for those of all weights holds the inputs of every layer."""
    moving: set[str] = set()
    proxy_loss = ModelJudge.proxy_loss

    def noted(self: ModelJudge, part: int) -> torch.Tensor:
        moving.update(name for name, parameter in tiny_model.module.named_parameters() if parameter.requires_grad)
        return proxy_loss(self, part)

    monkeypatch.setattr(ModelJudge, "proxy_loss", noted)
    evolution = _evolution(tiny_model, stats, tmp_path, SearchConfig(), lambda _: [1.0])
    evolution.refine([uniform(tiny_model, Level(0.5))])
    assert moving == evolution.parameters().keys()
    assert all(parameter.requires_grad for parameter in tiny_model.module.parameters())


def test_tries_become_rarer_while_they_do_not_help(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    asked: list[int] = []
    calls = iter(range(1, 20))

    def held_out(_: Sequence[Policy]) -> list[float]:
        asked.append(call)
        return [1.0]

    evolution = _evolution(tiny_model, stats, tmp_path, SearchConfig(projector_steps=1), held_out)
    for call in calls:
        evolution.refine([uniform(tiny_model, Level(call / 100))])
    assert asked[::2] == [1, 3, 6, 11]


def test_projector_steps_follow_the_mean_loss_of_the_policies(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    """One step of Adam moves each weight by its learning rate against the sign of the summed gradients."""
    rate = 1e-3
    settings = SearchConfig(projector_learning_rate=rate, projector_steps=1)
    verdicts = iter([[1.0, 1.0], [1.0, 0.5]])
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    policies = [uniform(tiny_model, Level(0.3)), uniform(tiny_model, Level(0.7))]
    old, gradients = evolution.parameters(), []
    for policy in policies:
        evolution.train.pruned.apply(policy)
        linear = tiny_model.linear(name := next(name for name in policy.levels if "projector" in name))
        (gradient,) = torch.autograd.grad(evolution.train.proxy_loss(1), [linear.weight])
        gradients.append(gradient * evolution.train.pruned.mask_now(name))
    assert evolution.refine(policies)
    moved = evolution.weights[f"{name}.weight"] - old[f"{name}.weight"]
    summed = sum(gradients)
    clear = summed.abs() > 1e-4 * summed.abs().max()
    assert torch.allclose(moved[clear], -rate * summed.sign()[clear], rtol=1e-2)
    assert not moved[summed == 0].any(), "what both masks hide stays as it was"
    assert not torch.equal(gradients[0].sign()[clear], summed.sign()[clear]), "both policies count"


def test_projector_steps_that_help_are_kept_and_touch_nothing_else(tiny_model: Model, stats: Stats) -> None:
    result = run_search(tiny_model, stats, short_search(generations=6, projector_learning_rate=1e-3, projector_steps=8))
    assert result.chosen == "evolution"
    assert any(generation.changed == "projector" for generation in result.history)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    result.apply_projector(tiny_model)
    changed = {name for name, now in tiny_model.module.named_parameters() if not torch.equal(now, before[name])}
    assert changed == set(result.projector)
    assert all("projector" in name for name in changed)


@pytest.mark.parametrize(("eta_changes", "accepted"), [(False, (1,)), (True, ())])
def test_a_projector_counts_as_accepted_unless_eta_took_its_turn(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch, eta_changes: bool, accepted: tuple[int, ...]
) -> None:
    monkeypatch.setattr(EtaChoice, "choose", lambda _: eta_changes)
    monkeypatch.setattr(ProjectorEvolution, "refine", lambda *_: True)
    result = run_search(tiny_model, stats, short_search(generations=1, eta="auto"))
    assert result.eta_chosen == 1
    assert result.summary().accepted == accepted
