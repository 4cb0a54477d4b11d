"""Masks keep exactly what the policy counts, and what the criterion's formula ranks highest."""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_samples, masks_of
from torch import Tensor

from slimdeploy.config import Criterion, PruneConfig
from slimdeploy.errors import PruneError
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Level, Policy, available_levels, kept_per_row
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, Stats, apply_masks, collect_stats, load_masks, prune_blockwise, save_masks
from slimdeploy.prune.criteria import magnitude_scores, wanda_scores
from slimdeploy.prune.patterns import mask_at, mask_of, ranks

PATTERNS = ["unstructured", "2:4", "*:8", "5:7", "26:64"]


def _best_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda column: (-scores[column], column))


def _brute_force(scores: Tensor, level: Level) -> Tensor:
    """Row by row and group by group, in plain Python."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    columns = scores.shape[1]
    size = level.group or columns
    for row in range(scores.shape[0]):
        for start in range(0, columns, size):
            part = scores[row, start : start + size].tolist()
            for column in _best_first(part)[: kept_per_row(len(part), level)]:
                mask[row, start + column] = True
    return mask


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 70),
    pattern=st.sampled_from(PATTERNS),
    choice=st.integers(0, 100),
    seed=st.integers(0, 1000),
    grains=st.sampled_from([3, 1000]),
)
def test_a_mask_equals_brute_force_and_keeps_what_the_policy_counts(
    rows: int, columns: int, pattern: str, choice: int, seed: int, grains: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(grains, (rows, columns), generator=generator).float()  # few grains: many ties
    levels = available_levels(pattern, 0.05)
    level = levels[choice % len(levels)]
    mask = mask_at(ranks(scores, level.group), level)
    assert torch.equal(mask, _brute_force(scores, level))
    assert (mask.sum(1) == kept_per_row(columns, level)).all()


@given(columns=st.integers(1, 70), pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 1000))
def test_masks_are_nested_over_levels(columns: int, pattern: str, seed: int) -> None:
    scores = torch.rand(2, columns, generator=torch.Generator().manual_seed(seed))
    levels = [level for level in available_levels(pattern, 0.1) if level != DENSE]
    rank = ranks(scores, levels[-1].group)
    masks = [mask_at(rank, level) for level in levels]
    assert all(not bool((sparser & ~denser).any()) for denser, sparser in pairwise(masks))


def test_wanda_scores_are_the_weight_times_the_norm_of_its_inputs() -> None:
    weight, inputs = torch.randn(5, 7), torch.randn(11, 7)
    scores = wanda_scores(weight, inputs.double().square().sum(0))
    for i in range(5):
        for j in range(7):
            assert float(scores[i, j]) == pytest.approx(abs(float(weight[i, j])) * float(inputs[:, j].norm()), rel=1e-5)


def test_magnitude_scores_ignore_the_sign() -> None:
    assert magnitude_scores(torch.tensor([[-2.0, 1.0]])).tolist() == [[2.0, 1.0]]


def _policy(model: Model, level: Level) -> Policy:
    return Policy({layer.name: level for layer in model.layers()})


@pytest.fixture
def stats(tiny_model: Model) -> Stats:
    return collect_stats(tiny_model, make_samples(3), "wanda", 3, Progress.silent())


@pytest.mark.parametrize("criterion", ["wanda", "magnitude"])
@pytest.mark.parametrize("level", [Level(0.6), Level(0.5, 4)])
def test_a_policys_masks_keep_its_weights(tiny_model: Model, stats: Stats, criterion: Criterion, level: Level) -> None:
    policy = _policy(tiny_model, level)
    masks = masks_of(tiny_model, policy, criterion, stats)
    assert sum(int(mask.sum()) for mask in masks.values()) == policy.kept(tiny_model.layers())


def test_dense_layers_get_no_mask(tiny_model: Model, stats: Stats) -> None:
    first, *_ = tiny_model.layers()
    masks = masks_of(tiny_model, _policy(tiny_model, Level(0.5)).with_level(first.name, DENSE), "wanda", stats)
    assert set(masks) == {layer.name for layer in tiny_model.layers()} - {first.name}


def test_masks_take_what_is_outside_of_them_and_nothing_else(tiny_model: Model, stats: Stats) -> None:
    masks = masks_of(tiny_model, _policy(tiny_model, Level(0.7)), "wanda", stats)
    before = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    apply_masks(tiny_model, masks)
    for name, mask in masks.items():
        assert torch.equal(tiny_model.linear(name).weight, before[name] * mask)


def test_masks_that_were_loaded_follow_the_model_to_its_device(tiny_model: Model, stats: Stats) -> None:
    masks = masks_of(tiny_model, _policy(tiny_model, Level(0.5)), "magnitude", stats)
    tiny_model.module.to("meta")  # a device that every machine has
    apply_masks(tiny_model, masks)
    assert all(tiny_model.linear(name).weight.is_meta for name in masks)


def test_biases_are_kept(tiny_model: Model, stats: Stats) -> None:
    biases = {name: tensor.clone() for name, tensor in tiny_model.module.named_parameters() if name.endswith("bias")}
    apply_masks(tiny_model, masks_of(tiny_model, _policy(tiny_model, Level(0.9)), "wanda", stats))
    now = dict(tiny_model.module.named_parameters())
    assert all(torch.equal(now[name], bias) for name, bias in biases.items())


def test_saved_masks_load_equal(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    masks = masks_of(tiny_model, _policy(tiny_model, Level(0.5)), "wanda", stats)
    save_masks(masks, tmp_path)
    again = load_masks(tmp_path)
    assert again.keys() == masks.keys()
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


def test_weights_that_are_not_finite_are_named_by_layer(tiny_model: Model, stats: Stats) -> None:
    name = tiny_model.layers()[3].name
    with torch.no_grad():
        tiny_model.linear(name).weight[0, 0] = float("inf")
    with pytest.raises(PruneError, match=f"weights of {name} hold NaN or infinity"):
        masks_of(tiny_model, _policy(tiny_model, Level(0.5)), "wanda", stats)


def test_a_layer_that_no_sample_reaches_may_stay_dense(tiny_model: Model, stats: Stats) -> None:
    first, *others = (layer.name for layer in tiny_model.layers())
    del stats.input_sq_sum[first]
    policy = Policy({first: DENSE, **dict.fromkeys(others, Level(0.5))})
    assert masks_of(tiny_model, policy, "wanda", stats).keys() == set(others)
    with pytest.raises(PruneError, match=f"the statistics hold nothing on {first}.* name it in prune.skip"):
        masks_of(tiny_model, policy.with_level(first, Level(0.5)), "wanda", stats)


def test_statistics_of_another_model_are_refused(tiny_model: Model) -> None:
    with pytest.raises(PruneError, match="the statistics hold nothing on"):
        masks_of(tiny_model, _policy(tiny_model, Level(0.5)), "wanda", Stats())


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("level", [Level(0.5), Level(0.95), Level(0.0), Level(0.5, 4), Level(2 / 7, 7)], ids=str)
def test_a_mask_of_one_level_is_the_one_that_ranks_give(level: Level, per_row: bool) -> None:
    scores = torch.randn(40, 65)
    for some in (scores, scores.bfloat16(), scores.round()):  # ever more of them are equal
        assert torch.equal(mask_of(some, level, per_row), mask_at(ranks(some, level.group, per_row), level, per_row))


@pytest.mark.parametrize(
    ("criterion", "compete", "per_row"),
    [
        ("wanda", "auto", True),
        ("atv", "auto", True),
        ("magnitude", "auto", False),
        ("sparsegpt", "auto", False),
        ("wanda", "matrix", False),
        ("sparsegpt", "row", True),
    ],
)
def test_weights_compete_as_the_criterion_was_published_unless_the_settings_say(
    tiny_model: Model, criterion: Criterion, compete: Literal["auto", "row", "matrix"], per_row: bool
) -> None:
    config = PruneConfig(criterion=criterion, compete=compete)
    assert config.per_row == per_row
    samples, name = make_samples(3), tiny_model.layers()[0].name
    policy = Policy({layer.name: Level(0.5) for layer in tiny_model.layers()})
    ((_, masks), *_) = prune_blockwise(tiny_model, policy, Pruning(config, samples, 3, Progress.silent()))
    assert (len(masks[name].sum(1).unique()) == 1) == per_row
    assert int(masks[name].sum()) == masks[name].numel() // 2
