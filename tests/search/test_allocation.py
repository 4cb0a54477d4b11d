"""Allocation formulas equal their papers', and every policy made with them just meets the budget."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import run_search, short_search
from tiny import make_samples

from slimdeploy.config import BudgetConfig, Config, PruneConfig, SearchConfig, SearchMethod
from slimdeploy.errors import PruneError
from slimdeploy.losses import answer_loss, text_logits
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Layer, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Stats
from slimdeploy.prune.criteria import layer_scores
from slimdeploy.samples import Sample, Split
from slimdeploy.search import formulas, sensitivity
from slimdeploy.search.allocation import (
    blocks_of,
    ecoflap,
    ecoflap_sparsities,
    language_only,
    owl,
    owl_sparsities,
)
from slimdeploy.search.journal import Journal
from slimdeploy.search.model_search import search_policy
from slimdeploy.search.result import SearchResult
from slimdeploy.search.sensitivity import answered_batches, outlier_shares, zeroth_order_slope
from slimdeploy.search.space import Space, search_space

LAYERS = (
    *(Layer(f"vision.layers.{i}.fc{j}", "vision", 96, 64) for i in range(3) for j in (1, 2)),
    Layer("projector.linear_1", "projector", 64, 64),
    Layer("projector.linear_2", "projector", 64, 64),
    *(Layer(f"language.layers.{i}.{name}", "language", 130, 70) for i in range(4) for name in ("up", "down")),
)
BLOCKS = tuple(blocks_of(LAYERS))
shares = st.floats(0.0, 0.2)


def space_of(sparsity: float, pattern: str = "unstructured") -> Space:
    search = SearchConfig(method="owl", budget=BudgetConfig(sparsity=sparsity))
    return search_space(LAYERS, Config(prune=PruneConfig(pattern=pattern), search=search))


def test_a_block_is_what_a_tower_repeats() -> None:
    vision, language = (f"vision.layers.{i}" for i in range(3)), (f"language.layers.{i}" for i in range(4))
    assert list(blocks_of(LAYERS)) == [*vision, "projector", *language]
    assert [layer.name for layer in blocks_of(LAYERS)["projector"]] == ["projector.linear_1", "projector.linear_2"]


@given(st.lists(shares, min_size=2, max_size=40).filter(lambda found: max(found) > min(found)), st.floats(0.3, 0.8))
def test_owl_is_its_formula(outliers: list[float], sparsity: float) -> None:
    # Kept: scaled to [0, 2 lambda], less its mean, plus 1 - S; as the authors' code has it.
    ratio = np.array(outliers)
    kept = (ratio - ratio.min()) / (ratio.max() - ratio.min()) * 2 * 0.08
    kept = kept - kept.mean() + (1 - sparsity)
    np.testing.assert_allclose(owl_sparsities(outliers, sparsity), 1 - kept, atol=1e-12)


def test_owl_of_equal_blocks_is_uniform() -> None:
    assert owl_sparsities([0.1, 0.1], 0.6) == [0.6, 0.6]


@given(
    st.lists(st.tuples(st.floats(0.001, 10), st.integers(100, 100_000)), min_size=1, max_size=30), st.floats(0.2, 0.85)
)
def test_ecoflap_keeps_the_budget_its_floor_and_the_order_of_the_scores(
    blocks: list[tuple[float, int]], sparsity: float
) -> None:
    scores, weights = [score for score, _ in blocks], [count for _, count in blocks]
    found = ecoflap_sparsities(scores, weights, sparsity)
    assert all(-1e-9 <= each <= sparsity + 0.1 + 1e-9 for each in found)
    kept = sum((1 - each) * count for each, count in zip(found, weights, strict=True))
    assert kept == pytest.approx((1 - sparsity) * sum(weights), rel=1e-4)


@given(
    st.lists(st.tuples(st.floats(0.001, 10), st.integers(1_000_000, 9_000_000)), min_size=1, max_size=20),
    st.floats(0.2, 0.85),
)
def test_ecoflap_is_its_authors_loop(blocks: list[tuple[float, int]], sparsity: float) -> None:
    """They count whole weights, so that the two differ by a few weights of a block."""
    scores, weights = [score for score, _ in blocks], [count for _, count in blocks]
    expected = _ecoflap_in_whole_weights(scores, weights, sparsity)
    np.testing.assert_allclose(ecoflap_sparsities(scores, weights, sparsity), expected, atol=1e-3)


def _ecoflap_in_whole_weights(scores: list[float], weights: list[int], sparsity: float) -> list[float]:
    """Every block keeps what the highest sparsity of a block, 0.1 above the mean, leaves it. Then, in rounds, what may
    still be kept is dealt out by each block's share of the scores, and whoever is full deals no more.
    """
    budget = int((1 - sparsity) * sum(weights))
    kept = {block: math.ceil((1 - (sparsity + 0.1)) * count) for block, count in enumerate(weights)}
    open_blocks = set(kept)
    while open_blocks and (left := budget - sum(kept.values())) > 0:
        together = sum(scores[block] for block in open_blocks)
        for block in sorted(open_blocks):
            kept[block] += math.ceil(left * scores[block] / together)
            if kept[block] >= weights[block]:
                kept[block] = weights[block]
                open_blocks.remove(block)
    return [1 - kept[block] / count for block, count in enumerate(weights)]


def test_ecoflap_shares_out_by_score_and_fills_no_block_twice() -> None:
    # 1200 weights stay, 300 of each block for sure; the other 300 go out 9 : 0.5 : 0.5.
    assert ecoflap_sparsities([9, 0.5, 0.5], [1000, 1000, 1000], 0.6) == pytest.approx([0.43, 0.685, 0.685])
    # 840 stay, 630 for sure; of the other 210 the first is full with 70, and the others take 70 each.
    assert ecoflap_sparsities([98, 1, 1], [100, 1000, 1000], 0.6) == pytest.approx([0.0, 0.63, 0.63], abs=1e-6)


@settings(max_examples=30)
@given(
    st.floats(0.2, 0.8),
    st.sampled_from(["unstructured", "*:64", "*:8"]),
    st.lists(shares, min_size=len(BLOCKS), max_size=len(BLOCKS)),
)
def test_every_policy_just_meets_the_budget(sparsity: float, pattern: str, found: list[float]) -> None:
    space, by_block = space_of(sparsity, pattern), dict(zip(BLOCKS, found, strict=True))
    for policy in (owl(space, sparsity, by_block), ecoflap(space, sparsity, by_block)):
        assert space.fits(policy)
        denser = Policy({name: _denser(space, level) for name, level in policy.levels.items()})
        assert not space.fits(denser)


def _denser(space: Space, level: Level) -> Level:
    if space.pattern == "unstructured":
        return Level(max(level.sparsity - 0.02, 0))
    return next((other for other in reversed(space.levels) if other.sparsity < level.sparsity), level)


def test_language_alone_takes_the_whole_budget_and_is_refused_where_it_cannot() -> None:
    policy = language_only(space_of(0.5))
    levels = {layer.tower: policy.levels[layer.name] for layer in LAYERS}
    assert (levels["vision"], levels["projector"]) == (DENSE, DENSE)
    assert space_of(0.5).fits(policy)
    with pytest.raises(PruneError, match="the budget cannot be met by the 8 matrices"):
        language_only(space_of(0.7))


@pytest.mark.parametrize(("pattern", "noted"), [("2:4", True), ("unstructured", False)])
def test_a_formula_that_removes_more_than_was_asked_for_says_so(
    tiny_model: Model, stats: Stats, pattern: str, noted: bool
) -> None:
    config = short_search(method="uniform", budget=BudgetConfig(sparsity=0.3))
    config = config.model_copy(update={"prune": PruneConfig(criterion="wanda", pattern=pattern)})
    run_search(tiny_model, stats, config, progress=(progress := Progress.silent()))
    assert any("removes 50.0% of the weights, not 30.0%" in note for note in progress.notes) == noted


def test_outliers_are_scores_above_five_times_the_blocks_mean(tiny_model: Model, stats: Stats) -> None:
    blocks = blocks_of(tiny_model.layers())
    shares = outlier_shares(tiny_model, stats, blocks)
    assert shares.keys() == blocks.keys()
    for block, layers in blocks.items():
        scores = [
            float(x)
            for name in (layer.name for layer in layers)
            for x in layer_scores(tiny_model.linear(name).weight.detach(), name, "wanda", stats).flatten()
        ]
        mean = sum(scores) / len(scores)
        assert shares[block] == pytest.approx(sum(score > 5 * mean for score in scores) / len(scores))


def test_zeroth_order_slopes_come_near_the_directional_derivative(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = answered_batches(tiny_model, make_samples(3))
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    drawn: list[torch.Tensor] = []

    def noted(*size: object, generator: torch.Generator) -> torch.Tensor:
        drawn.append(randn(*size, generator=generator))
        return drawn[-1]

    randn = torch.randn
    monkeypatch.setattr(torch, "randn", noted)
    names = [layer.name for layer in tiny_model.layers()]
    found = {name: zeroth_order_slope(tiny_model, name, batches, seed=4) for name in names}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())
    assert found == {name: zeroth_order_slope(tiny_model, name, batches, seed=4) for name in reversed(names)}
    assert not any(torch.equal(one, other) for one, other in pairwise(drawn[: len(names)]))

    (batch,) = batches
    weights = [tiny_model.linear(name).weight for name in names]
    gradients = torch.autograd.grad(answer_loss(text_logits(tiny_model, batch), batch), weights)
    for name, gradient, z in zip(names, gradients, drawn, strict=False):
        assert found[name] == pytest.approx(float((gradient * z).sum().abs()), rel=0.05, abs=2e-3)


def test_ecoflap_adds_up_the_slopes_of_a_block_and_a_kill_loses_one_of_them_at_most(
    tiny_model: Model, stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(search=SearchConfig(method="ecoflap", budget=BudgetConfig(sparsity=0.4)))
    samples: dict[Split, Sequence[Sample]] = {"search": make_samples(4)}
    asked: list[str] = []

    def killed(model: Model, name: str, *arguments: Any) -> float:
        asked.append(name)
        if len(asked) % 10 == 0:
            raise KeyboardInterrupt
        return zeroth_order_slope(model, name, *arguments)

    def run(journal: Path) -> SearchResult:
        return search_policy(tiny_model, stats, samples, config, Progress.silent(), Journal(journal))

    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = run(whole)
    monkeypatch.setattr(formulas, "zeroth_order_slope", killed)
    result = None
    while result is None:
        try:
            result = run(tmp_path)
        except KeyboardInterrupt:
            assert len(asked) < 100
    assert result.policy == undisturbed.policy
    layers = tiny_model.layers()
    assert len(asked) == len(layers) + len(asked) // 10, "what was asked before a kill is not asked again"
    (cost,) = result.costs
    batches = answered_batches(tiny_model, samples["search"])
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert (cost.of, cost.evaluations, cost.tokens) == ("ecoflap", 2 * len(layers), 2 * len(layers) * tokens)


def test_a_measurement_that_fails_leaves_the_weights(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    batches = answered_batches(tiny_model, make_samples(3))
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    monkeypatch.setattr(sensitivity, "text_logits", failing)
    with pytest.raises(KeyboardInterrupt):
        zeroth_order_slope(tiny_model, tiny_model.layers()[0].name, batches, seed=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())


def test_ecoflap_without_an_answer_is_refused(tiny_model: Model) -> None:
    with pytest.raises(PruneError, match=r"no search sample has one; set search.method = 'owl' or 'uniform'"):
        answered_batches(tiny_model, [Sample("s", "What?")])


@pytest.mark.parametrize("method", ["language", "owl", "ecoflap"])
def test_each_formula_gives_a_policy_within_budget(
    tiny_model: Model, stats: Stats, method: SearchMethod, tmp_path: Path
) -> None:
    config = Config(search=SearchConfig(method=method, budget=BudgetConfig(sparsity=0.4)))
    samples, layers = make_samples(4), tiny_model.layers()
    result = search_policy(tiny_model, stats, {"search": samples}, config, Progress.silent(), Journal(tmp_path))
    assert result.chosen == method
    assert result.policy.sparsity(layers) >= 0.4
    blocks = blocks_of(layers)
    worth: dict[str, float]
    match method:
        case "owl":
            # Of one tower; the formula compares no others.
            blocks = {name: own for name, own in blocks.items() if own[0].tower == "language"}
            worth = outlier_shares(tiny_model, stats, blocks)
        case "ecoflap":
            batches = answered_batches(tiny_model, samples)
            slopes = {
                name: sum(zeroth_order_slope(tiny_model, layer.name, batches, config.search.seed) for layer in own)
                for name, own in blocks.items()
            }
            worth = {name: slopes[name] / sum(layer.weights for layer in own) for name, own in blocks.items()}
        case _:
            worth = {name: float(own[0].tower != "language") for name, own in blocks.items()}
    sparsities = [result.policy.levels[blocks[name][0].name].sparsity for name in sorted(blocks, key=worth.__getitem__)]
    assert sparsities == sorted(sparsities, reverse=True), "what is worth more keeps more"
    assert sparsities[0] > sparsities[-1]
