"""Pruning block by block: what a block is pruned for, and that it ends at the policy."""

import weakref

import pytest
import torch
from tiny import make_samples, masks_of

from slimdeploy.config import Criterion, PruneConfig
from slimdeploy.errors import PruneError
from slimdeploy.losses import text_batch, text_logits
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Masks, Pruning, collect_stats, prune_blockwise
from slimdeploy.prune.criteria import wanda_scores
from slimdeploy.prune.database import as_stored
from slimdeploy.prune.patterns import mask_at, ranks
from slimdeploy.prune.walk import Walk, encode_all

SAMPLES = make_samples(4)
HALF = Level(0.5)


def _policy(model: Model, level: Level = HALF) -> Policy:
    return Policy({layer.name: level for layer in model.layers()})


def _prune(model: Model, config: PruneConfig, policy: Policy | None = None) -> Masks:
    blocks = prune_blockwise(model, policy or _policy(model), Pruning(config, SAMPLES, 2, Progress.silent()))
    return {name: mask for _, block in blocks for name, mask in block.items()}


def _error(model: Model, dense: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((text_logits(model, text_batch(model, SAMPLES)) - dense).norm())


@pytest.mark.parametrize("criterion", ["wanda", "atv", "magnitude"])
def test_for_dense_inputs_the_masks_are_those_of_the_statistics(tiny_model: Model, criterion: Criterion) -> None:
    stats = collect_stats(tiny_model, SAMPLES, criterion, 2, Progress.silent())
    expected = masks_of(tiny_model, _policy(tiny_model), criterion, stats)
    masks = _prune(tiny_model, PruneConfig(criterion=criterion))
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_it_holds_no_masks_of_the_blocks_before(tiny_model: Model, criterion: Criterion) -> None:
    before: list[weakref.ref[torch.Tensor]] = []
    policy, config = _policy(tiny_model), PruneConfig(criterion=criterion)
    for _, masks in prune_blockwise(tiny_model, policy, Pruning(config, SAMPLES, 2, Progress.silent())):
        assert not any(mask() is not None for mask in before)
        before = [weakref.ref(mask) for mask in masks.values()]
        del masks


@pytest.mark.parametrize(("propagate", "equal"), [("pruned", True), ("dense", False)])
def test_a_block_is_pruned_for_what_the_blocks_before_it_put_out(
    tiny_model: Model, propagate: str, equal: bool
) -> None:
    query = f"{tiny_model.language_blocks()[-1]}.self_attn.q_proj"
    weight = tiny_model.linear(query).weight.detach().clone()
    masks = _prune(tiny_model, PruneConfig(criterion="wanda", propagate=propagate))  # type: ignore[arg-type]
    # The blocks before it are pruned by now, so this is what it saw.
    seen = collect_stats(tiny_model, SAMPLES, "wanda", 2, Progress.silent()).input_sq_sum[query]
    expected = mask_at(ranks(wanda_scores(weight, seen), 0), Level(0.5))
    assert torch.equal(masks[query], expected) == equal


@pytest.mark.parametrize("propagate", ["dense", "pruned"])
def test_sparsegpt_loses_less_than_masks_alone(tiny_model: Model, propagate: str) -> None:
    with torch.inference_mode():
        dense = text_logits(tiny_model, text_batch(tiny_model, SAMPLES))
    weights = {layer.name: tiny_model.linear(layer.name).weight.detach().clone() for layer in tiny_model.layers()}
    masks = _prune(tiny_model, PruneConfig(criterion="sparsegpt", propagate=propagate))  # type: ignore[arg-type]
    updated = _error(tiny_model, dense)
    with torch.no_grad():
        for name, mask in masks.items():
            assert not tiny_model.linear(name).weight[~mask].any()
            tiny_model.linear(name).weight.copy_(weights[name] * mask)
    assert updated < _error(tiny_model, dense)


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_layers_that_stay_dense_are_left_alone(tiny_model: Model, criterion: Criterion) -> None:
    first = tiny_model.layers()[0].name
    before = tiny_model.linear(first).weight.detach().clone()
    masks = _prune(tiny_model, PruneConfig(criterion=criterion), _policy(tiny_model).with_level(first, DENSE))
    assert first not in masks
    assert torch.equal(tiny_model.linear(first).weight, before)


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_survivors_are_rounded_where_the_policy_says(tiny_model: Model, criterion: Criterion) -> None:
    _prune(tiny_model, PruneConfig(criterion=criterion), _policy(tiny_model, Level(0.5, values="int4")))
    for layer in tiny_model.layers():
        weight = tiny_model.linear(layer.name).weight.detach()
        torch.testing.assert_close(as_stored(weight, "int4"), weight)


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_a_weight_that_is_not_finite_is_named(tiny_model: Model, criterion: Criterion) -> None:
    name = tiny_model.layers()[-1].name
    with torch.no_grad():
        tiny_model.linear(name).weight[0, 0] = float("inf")
    with pytest.raises(PruneError, match=f"the weights of {name} hold NaN"):
        _prune(tiny_model, PruneConfig(criterion=criterion))


def test_without_samples_nothing_is_pruned(tiny_model: Model) -> None:
    with pytest.raises(PruneError, match="no calibration samples"):
        list(prune_blockwise(tiny_model, _policy(tiny_model), Pruning(PruneConfig(), [], 2, Progress.silent())))


def test_watching_a_block_shows_what_running_it_does_and_leaves_its_last_product_out(tiny_model: Model) -> None:
    walk = Walk(tiny_model, encode_all(tiny_model, SAMPLES, 1))
    block = next(iter(walk))
    seen: tuple[list[tuple[str, torch.Tensor]], ...] = ([], [])
    outputs = block.run(lambda *told: seen[0].append(told))
    products = []
    last = tiny_model.linear(seen[0][-1][0])
    hook = last.register_forward_hook(lambda _, __, output: products.append(bool(output.any())))
    block.watch(lambda *told: seen[1].append(told))
    hook.remove()
    assert products == [True, False, False, False]
    for (name, inputs), (watched, shown) in zip(*seen, strict=True):
        assert name == watched
        assert torch.equal(inputs, shown)
    assert all(torch.equal(*pair) for pair in zip(outputs, block.run(), strict=True)), "the block is whole again"


def test_blocks_that_stay_dense_hand_on_what_they_put_out(tiny_model: Model) -> None:
    dense = text_logits(tiny_model, text_batch(tiny_model, SAMPLES))
    assert not _prune(tiny_model, PruneConfig(propagate="pruned"), _policy(tiny_model, DENSE))
    assert torch.equal(text_logits(tiny_model, text_batch(tiny_model, SAMPLES)), dense)
