"""Restoration is SparseLoRA's equation, lowers the loss, and leaves exactly the mask's zeros."""

import io
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console
from tiny import make_samples, masked, masks_of
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from slimdeploy.config import RestoreConfig
from slimdeploy.errors import PruneError
from slimdeploy.losses import answer_loss, text_batch, text_logits
from slimdeploy.model import DType, Model, load_model
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Bar, Progress
from slimdeploy.prune import Masks, Stats, set_weights
from slimdeploy.restore import PlainLora, RestoreReport, SparseLora, restore
from slimdeploy.restore.adapters import adapted, teaching
from slimdeploy.restore.memory import recomputed
from slimdeploy.restore.reconstruction import reconstruct
from slimdeploy.restore.states import States

WEIGHT, MASK = torch.randn(6, 5), torch.rand(6, 5) > 0.5
CONFIG = RestoreConfig(steps=12, batch_size=4, learning_rate=1e-2)


@pytest.fixture
def masks(tiny_model: Model) -> Masks:
    policy = Policy({layer.name: Level(0.6) for layer in tiny_model.layers()})
    return masks_of(tiny_model, policy, "magnitude", Stats())


def _answer_loss(model: Model) -> float:
    batch = text_batch(model, make_samples(8))
    with torch.inference_mode():
        return float(answer_loss(text_logits(model, batch), batch))


def _adapter(kind: type[SparseLora], start: Tensor | None = None) -> SparseLora:
    """A trained one: its B is not zero."""
    adapter = kind(MASK, start, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapter(WEIGHT), (WEIGHT if start is None else start) * MASK)
    with torch.no_grad():
        adapter.B.normal_()
    return adapter


@pytest.mark.parametrize("start", [None, torch.randn(6, 5)])
def test_the_layer_computes_the_equation_and_starts_at_the_pruned_weight(start: Tensor | None) -> None:
    adapter = _adapter(SparseLora, start)
    before = WEIGHT if start is None else start
    torch.testing.assert_close(adapter(WEIGHT), (before + 1.5 * adapter.B @ adapter.A) * MASK, rtol=0, atol=1e-6)
    adapter.teaches = True
    assert torch.equal(adapter(WEIGHT), WEIGHT)


@pytest.mark.parametrize("start", [None, torch.randn(6, 5)])
def test_plain_lora_masks_the_weight_alone(start: Tensor | None) -> None:
    adapter = _adapter(PlainLora, start)
    before = WEIGHT if start is None else start
    torch.testing.assert_close(adapter(WEIGHT), before * MASK + 1.5 * adapter.B @ adapter.A, rtol=0, atol=1e-6)
    adapter.teaches = True
    assert torch.equal(adapter(WEIGHT), WEIGHT)


@pytest.mark.parametrize("method", ["sparse_lora", "lora"])
def test_merging_is_the_equation_and_leaves_the_bias(tiny_model: Model, masks: Masks, method: str) -> None:
    moved = list(masks)[::2]
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    start = {name: dense[name] + torch.randn_like(dense[name]) for name in moved}
    biases = {name: tiny_model.linear(name).bias for name in masks}
    config = CONFIG.model_copy(update={"method": method})
    with adapted(tiny_model, masks, start, config) as adapters, torch.no_grad():
        for adapter in adapters.values():
            adapter.B.normal_(std=0.1)
    for name, adapter in adapters.items():
        update = config.alpha / adapter.A.shape[0] * adapter.B.double() @ adapter.A.double()
        expected = (start.get(name, dense[name]).double() + update) * masks[name]
        linear = tiny_model.linear(name)
        torch.testing.assert_close(linear.weight.double(), expected, rtol=0, atol=1e-6)
        assert not bool(linear.weight[~masks[name]].any())
        assert linear.bias is biases[name]


def test_training_starts_from_what_pruning_made_and_the_dense_weights_teach(tiny_model: Model, masks: Masks) -> None:
    start = {name: 1.3 * tiny_model.linear(name).weight.detach() for name in list(masks)[1:]}
    batch = text_batch(tiny_model, make_samples(4))
    with torch.no_grad():
        dense = text_logits(tiny_model, batch)
    with adapted(tiny_model, masks, start, CONFIG) as adapters, torch.no_grad():
        with teaching(adapters):
            assert torch.equal(text_logits(tiny_model, batch), dense)
        pruned = text_logits(tiny_model, batch)
    set_weights(tiny_model, start)
    with masked(tiny_model, masks), torch.no_grad():
        torch.testing.assert_close(text_logits(tiny_model, batch), pruned)


def test_a_layer_that_pruning_changed_without_zeros_learns_too(tiny_model: Model, masks: Masks) -> None:
    name = list(masks)[-1]
    del masks[name]
    start = {name: 1.1 * tiny_model.linear(name).weight.detach()}
    restore(tiny_model, masks, make_samples(4), CONFIG, Progress.silent(), start)
    learnt = (tiny_model.linear(name).weight.detach() - start[name]).abs().mean()
    assert 0 < float(learnt) < 0.1


def test_method_none_leaves_what_pruning_made(tiny_model: Model, masks: Masks) -> None:
    start = {name: 1.3 * tiny_model.linear(name).weight.detach() for name in masks}
    restore(tiny_model, masks, [], RestoreConfig(method="none"), Progress.silent(), start)
    assert all(torch.equal(tiny_model.linear(name).weight, start[name] * mask) for name, mask in masks.items())


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


class Killed(BaseException):
    pass


class KilledAfter(Progress):
    """Stops the work once so many steps of a bar are done. told: what was done at a time."""

    def __init__(self, steps: int, bar: str = "restore") -> None:
        super().__init__(Console(quiet=True))
        self.steps = steps
        self.description = bar
        self.told: list[int] = []

    def bar(self, description: str, total: int) -> Bar:
        self.told.clear()
        return self if description == self.description else super().bar(description, total)

    def advance(self, _: str = "", count: int = 1) -> None:
        self.told.append(count)
        if sum(self.told) >= self.steps:
            raise Killed


def test_a_killed_restoration_arrives_at_the_same_weights(tiny_model: Model, masks: Masks, tmp_path: Path) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    config = CONFIG.model_copy(update={"steps": 35, "reconstruction_steps": 3})

    def restored(progress: Progress, journal: Path | None) -> tuple[RestoreReport, dict[str, Tensor]]:
        set_weights(tiny_model, dense)
        report = restore(tiny_model, masks, make_samples(7), config, progress, journal=journal)
        return report, {name: tiny_model.linear(name).weight.detach().clone() for name in masks}

    through, weights = restored(Progress.silent(), None)
    # In reconstruction, which takes the three blocks that are read, the projector and two more; then in training.
    for bar, step in (("reconstruct", 3), ("reconstruct", 5), ("restore", 12), ("restore", 33)):
        with pytest.raises(Killed):
            restored(KilledAfter(step, bar), tmp_path)
    went_on, weights_after_kills = restored(Progress.silent(), tmp_path)
    assert went_on == through
    assert all(torch.equal(weights[name], weights_after_kills[name]) for name in masks)


def test_steps_that_are_saved_are_not_done_again(tiny_model: Model, masks: Masks, tmp_path: Path) -> None:
    for steps, told in ((11, [1] * 11), (12, [10, 1, 1])):
        progress = KilledAfter(steps)
        with pytest.raises(Killed):
            restore(tiny_model, masks, make_samples(7), CONFIG, progress, journal=tmp_path)
        assert progress.told == told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reconstruction_brings_every_block_nearer_to_the_dense_one(
    tiny_model: Model, masks: Masks, dtype: Literal["float32", "bfloat16"]
) -> None:
    config = CONFIG.model_copy(update={"reconstruction_steps": 15, "dtype": dtype})
    with adapted(tiny_model, masks, {}, config) as adapters:
        errors = reconstruct(tiny_model, adapters, make_samples(8), config, Progress.silent(), States())
    assert list(errors) == [*tiny_model.vision_blocks(), *tiny_model.language_blocks()]
    assert all(after < 0.9 * before for before, after in errors.values())
    assert all(not bool(tiny_model.linear(name).weight[~mask].any()) for name, mask in masks.items())


def test_training_starts_where_reconstruction_ended(tiny_model: Model, masks: Masks) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    first = []
    for steps in (0, 15):
        set_weights(tiny_model, dense)
        config = CONFIG.model_copy(update={"reconstruction_steps": steps, "distillation": 1.0})
        first.append(restore(tiny_model, masks, make_samples(4), config, Progress.silent()).losses[0])
    assert first[1] < 0.8 * first[0]


def test_reconstruction_moves_nothing_of_a_block_without_masks(tiny_model: Model, masks: Masks) -> None:
    left_dense = tiny_model.language_blocks()[0]
    masks = {name: mask for name, mask in masks.items() if not name.startswith(f"{left_dense}.")}
    before = {name: weight.detach().clone() for name, weight in tiny_model.module.named_parameters()}
    config = CONFIG.model_copy(update={"reconstruction_steps": 2, "steps": 1})
    report = restore(tiny_model, masks, make_samples(4), config, Progress.silent())
    assert left_dense not in report.reconstruction
    for name, parameter in tiny_model.module.named_parameters():
        assert torch.equal(parameter, before[name]) == (name.removesuffix(".weight") not in masks)


def test_ranks_differ_by_tower(tiny_model: Model, masks: Masks) -> None:
    with adapted(tiny_model, masks, {}, CONFIG.model_copy(update={"rank": 3, "vision_rank": 2})) as adapters:
        assert [adapter.A.shape[0] for adapter in adapters.values()] == [2] * 12 + [3] * 16


def test_recomputing_blocks_changes_no_loss_and_no_weight(tiny_model: Model, masks: Masks) -> None:
    dense = {name: tiny_model.linear(name).weight.detach().clone() for name in masks}
    blocks = [tiny_model.module.get_submodule(path) for path in tiny_model.language_blocks()]
    blocks[0].forward = partial(blocks[0].forward)
    forwards = [vars(block).get("forward") for block in blocks]
    results = []
    for recompute in (False, True):
        set_weights(tiny_model, dense)
        config = CONFIG.model_copy(update={"gradient_checkpointing": recompute})
        losses = restore(tiny_model, masks, make_samples(6), config, Progress.silent()).losses
        results.append((losses, {name: tiny_model.linear(name).weight.detach().clone() for name in masks}))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in masks)
    assert [vars(block).get("forward") for block in blocks] == forwards


def test_recomputed_blocks_keep_no_adapted_weights_for_the_backward_pass(tiny_model: Model, masks: Masks) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    batch = text_batch(tiny_model, make_samples(6))
    with adapted(tiny_model, masks, {}, CONFIG):
        for recompute in (nullcontext(), recomputed(tiny_model)):
            kept.append(0)
            with recompute, saved_tensors_hooks(count, lambda tensor: tensor):
                text_logits(tiny_model, batch).sum().backward()
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(("held", "computed"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_it_restores_in_bfloat16(
    tiny_checkpoint: Path, masks: Masks, held: DType, computed: Literal["float32", "bfloat16"]
) -> None:
    model = load_model(str(tiny_checkpoint), dtype=held)
    config = CONFIG.model_copy(update={"dtype": computed})
    losses = restore(model, masks, make_samples(8), config, Progress.silent()).losses
    assert losses[-1] < 0.7 * losses[0]
    for name, mask in masks.items():
        weight = model.linear(name).weight
        assert str(weight.dtype) == f"torch.{held}"
        assert not bool(weight[~mask].any())
        # What is pruned of a bfloat16 model may round to zero as well, but hardly anything does.
        assert float(weight[mask].bool().float().mean()) > 0.999


def test_adapters_of_a_bfloat16_model_are_float32_and_merged_with_one_rounding(
    tiny_checkpoint: Path, masks: Masks
) -> None:
    model = load_model(str(tiny_checkpoint), dtype="bfloat16")
    dense = {name: model.linear(name).weight.detach().clone() for name in masks}
    with adapted(model, masks, {}, CONFIG) as adapters, torch.no_grad():
        for adapter in adapters.values():
            adapter.B.normal_(std=0.01)
    for name, adapter in adapters.items():
        assert adapter.A.dtype == adapter.B.dtype == torch.float32
        exact = dense[name].float() + CONFIG.alpha / adapter.A.shape[0] * adapter.B @ adapter.A
        assert torch.equal(model.linear(name).weight, (exact * masks[name]).bfloat16())


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
    exploded = {name: torch.full(mask.shape, torch.inf) for name, mask in masks.items()}
    with pytest.raises(PruneError, match=r"lower restore.learning_rate"):
        restore(tiny_model, masks, make_samples(2), CONFIG, Progress.silent(), exploded)


def test_a_teacher_that_predicts_nothing_is_refused_by_name(tiny_model: Model, masks: Masks) -> None:
    with torch.no_grad():
        tiny_model.linear("lm_head").weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match=r"the dense model predicts NaN.*its head or the norm before it is damaged"):
        restore(tiny_model, masks, make_samples(2), CONFIG, Progress.silent())


def test_a_restoration_that_fails_leaves_the_model_dense(tiny_model: Model, masks: Masks) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in tiny_model.module.parameters()]
    start = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
    with pytest.raises(Killed):
        restore(tiny_model, masks, make_samples(6), CONFIG, KilledAfter(3), start)
    after = tiny_model.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [parameter.requires_grad for parameter in tiny_model.module.parameters()] == trainable


def test_adapters_that_cannot_all_be_made_leave_none(tiny_model: Model, masks: Masks) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    with pytest.raises(KeyError), adapted(tiny_model, {**masks, "no such layer": MASK}, {}, CONFIG):
        pass
    after = tiny_model.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in tiny_model.module.parameters())
