"""Restoration is SparseLoRA's equation, lowers the loss, and leaves exactly the mask's zeros."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny import make_samples, masks_of

from slimdeploy.config import RestoreConfig
from slimdeploy.errors import PruneError
from slimdeploy.losses import answer_loss, text_batch, text_logits
from slimdeploy.model import Model
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Masks, Stats, masked, set_weights
from slimdeploy.restore import ADAPTERS, PlainLora, SparseLora, restore

CONFIG = RestoreConfig(steps=12, batch_size=4, learning_rate=1e-2)


@pytest.fixture
def masks(tiny_model: Model) -> Masks:
    policy = Policy({layer.name: Level(0.6) for layer in tiny_model.layers()})
    return masks_of(tiny_model, policy, "magnitude", Stats())


def _answer_loss(model: Model) -> float:
    batch = text_batch(model, make_samples(8))
    with torch.inference_mode():
        return float(answer_loss(text_logits(model, batch), batch))


def test_the_layer_computes_the_equation_and_starts_at_the_pruned_weight() -> None:
    mask = torch.rand(6, 5) > 0.5
    weight = torch.randn(6, 5)
    adapter = SparseLora(mask, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapter(weight), weight * mask)
    with torch.no_grad():
        adapter.B.normal_()
    torch.testing.assert_close(adapter(weight), (weight + 1.5 * adapter.B @ adapter.A) * mask, rtol=0, atol=1e-6)
    adapter.teaches = True
    assert torch.equal(adapter(weight), weight)


def test_plain_lora_masks_the_weight_alone() -> None:
    mask, weight = torch.rand(6, 5) > 0.5, torch.randn(6, 5)
    adapter = PlainLora(mask, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapter(weight), weight * mask)
    with torch.no_grad():
        adapter.B.normal_()
    torch.testing.assert_close(adapter(weight), weight * mask + 1.5 * adapter.B @ adapter.A, rtol=0, atol=1e-6)
    adapter.teaches = True
    assert torch.equal(adapter(weight), weight)


def test_plain_lora_trains_otherwise_and_is_masked_in_the_end(tiny_model: Model, masks: Masks) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    losses = {}
    for method in ("sparse_lora", "lora"):
        set_weights(tiny_model, dense)
        config = CONFIG.model_copy(update={"method": method})
        losses[method] = restore(tiny_model, masks, make_samples(8), config, Progress.silent()).losses
        assert all(not bool(tiny_model.linear(name).weight[~mask].any()) for name, mask in masks.items())
    assert losses["lora"][0] == losses["sparse_lora"][0]
    assert losses["lora"][-1] != losses["sparse_lora"][-1]


def test_outside_the_masks_everything_is_zero_and_inside_nothing_is_lost(tiny_model: Model, masks: Masks) -> None:
    report = restore(tiny_model, masks, make_samples(8), CONFIG, Progress.silent())
    for name, mask in masks.items():
        weight = tiny_model.linear(name).weight
        assert not bool(weight[~mask].any())
        assert bool(weight[mask].all())
    assert report.kept == sum(int(mask.sum()) for mask in masks.values())


def test_it_lowers_the_loss_below_the_pruned_models(tiny_model: Model, masks: Masks) -> None:
    with masked(tiny_model, masks):
        pruned = _answer_loss(tiny_model)
    report = restore(tiny_model, masks, make_samples(8), CONFIG, Progress.silent())
    assert _answer_loss(tiny_model) < 0.7 * pruned
    assert report.losses[-1] < report.losses[0]


def test_only_masked_weights_change(tiny_model: Model, masks: Masks) -> None:
    left_dense = masks.popitem()[0]
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    restore(tiny_model, masks, make_samples(4), CONFIG, Progress.silent())
    after = dict(tiny_model.module.named_parameters())
    assert after.keys() == before.keys()
    assert f"{left_dense}.weight" in before
    for name, parameter in after.items():
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name]) == (name.removesuffix(".weight") not in masks)


def test_equal_seeds_give_equal_weights(tiny_model: Model, masks: Masks) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    results = []
    for seed in (1, 1, 2):
        set_weights(tiny_model, dense)
        restore(tiny_model, masks, make_samples(6), CONFIG.model_copy(update={"seed": seed}), Progress.silent())
        results.append({name: tiny_model.linear(name).weight.detach().clone() for name in masks})
    assert all(torch.equal(results[0][name], results[1][name]) for name in masks)
    assert not all(torch.equal(results[0][name], results[2][name]) for name in masks)


def test_ranks_differ_by_tower(tiny_model: Model, masks: Masks, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[int] = []

    class Watched(SparseLora):
        def __init__(self, mask: torch.Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
            super().__init__(mask, rank, alpha, generator)
            ranks.append(rank)

    monkeypatch.setitem(ADAPTERS, "sparse_lora", Watched)
    config = CONFIG.model_copy(update={"steps": 1, "rank": 3, "vision_rank": 2})
    restore(tiny_model, masks, make_samples(2), config, Progress.silent())
    assert ranks == [2] * 12 + [3] * 16


def test_without_answers_the_dense_model_teaches_and_the_user_is_told(tiny_model: Model, masks: Masks) -> None:
    said = io.StringIO()
    samples = [replace(sample, answers=()) for sample in make_samples(8)]
    report = restore(tiny_model, masks, samples, CONFIG, Progress(Console(file=said, width=200)))
    assert report.answered == 0
    assert report.losses[-1] < report.losses[0]
    assert "100% of the training samples have no answer" in said.getvalue()


def test_method_none_prunes_and_trains_nothing(tiny_model: Model, masks: Masks) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    report = restore(tiny_model, masks, [], RestoreConfig(method="none"), Progress.silent())
    assert report.losses == ()
    assert all(torch.equal(tiny_model.linear(name).weight, dense[name] * mask) for name, mask in masks.items())


def test_nothing_to_learn_from_is_refused(tiny_model: Model, masks: Masks) -> None:
    with pytest.raises(PruneError, match="no samples"):
        restore(tiny_model, masks, [], CONFIG, Progress.silent())


def test_a_loss_that_explodes_is_refused(tiny_model: Model, masks: Masks) -> None:
    bias = tiny_model.linear(tiny_model.layers()[0].name).bias
    with torch.no_grad():
        bias.fill_(float("nan"))
    with pytest.raises(PruneError, match=r"lower restore.learning_rate"):
        restore(tiny_model, masks, make_samples(2), CONFIG, Progress.silent())
