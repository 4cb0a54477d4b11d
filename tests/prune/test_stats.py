"""Statistics gathered block by block equal those of one plain forward pass, whatever the batches and the padding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_samples
from torch import Tensor, nn

from slimdeploy.config import Criterion
from slimdeploy.errors import PruneError
from slimdeploy.model import Model, encode
from slimdeploy.progress import Progress
from slimdeploy.prune import Stats, collect_stats, moments
from slimdeploy.prune.recording import moved_to
from slimdeploy.prune.sparsegpt import Curvature


def _with_plain_hooks(model: Model, samples: list[Any]) -> dict[str, Tensor]:
    """One sample at a time, so that there is no padding to leave out."""
    sums: dict[str, Tensor] = {}

    def count(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + arguments[0].detach().double().flatten(0, -2).square().sum(0)

        return hook

    handles = [model.linear(layer.name).register_forward_pre_hook(count(layer.name)) for layer in model.layers()]
    for sample in samples:
        batch = {name: tensor for name, tensor in encode(model, [sample], answers=True).items() if name != "labels"}
        model.module(**batch)
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_block_by_block_equals_a_plain_forward_pass(tiny_model: Model, batch_size: int) -> None:
    samples = make_samples(5)
    stats = collect_stats(tiny_model, samples, "wanda", batch_size, Progress.silent())
    expected = _with_plain_hooks(tiny_model, samples)
    assert set(stats.input_sq_sum) == {layer.name for layer in tiny_model.layers()}
    for name, squares in expected.items():
        torch.testing.assert_close(stats.input_sq_sum[name], squares, rtol=1e-4, atol=1e-6, msg=name)


def test_padding_is_not_counted(tiny_model: Model) -> None:
    samples = make_samples(4)
    stats = collect_stats(tiny_model, samples, "wanda", 4, Progress.silent())
    tokens = int(encode(tiny_model, samples, answers=True)["attention_mask"].sum())
    assert {stats.tokens[layer.name] for layer in tiny_model.layers() if layer.tower == "language"} == {tokens}


def test_samples_without_a_picture_count_in_the_language_model_only(tiny_model: Model) -> None:
    seeing, blind = make_samples(2)
    both = collect_stats(tiny_model, [seeing, replace(blind, images=())], "wanda", 1, Progress.silent())
    alone = collect_stats(tiny_model, [seeing], "wanda", 1, Progress.silent())
    towers = {layer.name: layer.tower for layer in tiny_model.layers()}
    assert all((both.tokens[name] == alone.tokens[name]) == (tower != "language") for name, tower in towers.items())


def test_the_model_is_left_as_it_was(tiny_model: Model) -> None:
    batch = encode(tiny_model, make_samples(2))
    with torch.inference_mode():
        before = tiny_model.module(**batch).logits
        collect_stats(tiny_model, make_samples(2), "wanda", 2, Progress.silent())
        assert torch.equal(tiny_model.module(**batch).logits, before)


def test_without_a_picture_there_are_no_statistics(tiny_model: Model) -> None:
    with pytest.raises(PruneError, match="has a picture"):
        collect_stats(tiny_model, [replace(make_samples(1)[0], images=())], "wanda", 1, Progress.silent())


@pytest.mark.parametrize(
    "name", ["model.vision_tower.encoder.layers.0.mlp.fc1", "model.language_model.layers.0.mlp.up_proj"]
)
def test_weights_that_are_not_finite_are_named_and_not_the_layer_behind_them(tiny_model: Model, name: str) -> None:
    with torch.no_grad():
        tiny_model.linear(name).weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match=f"the weights of {name} hold NaN"):
        collect_stats(tiny_model, make_samples(1), "wanda", 1, Progress.silent())


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        ("model.vision_tower.encoder.layers.0.layer_norm2", "model.vision_tower.encoder.layers.0.mlp.fc1"),
        ("model.language_model.layers.0.post_attention_layernorm", "model.language_model.layers.0.mlp.gate_proj"),
    ],
)
def test_activations_that_are_not_finite_are_named_by_layer(tiny_model: Model, norm: str, layer: str) -> None:
    with torch.no_grad():
        tiny_model.module.get_submodule(norm).weight[0] = float("nan")
    with pytest.raises(PruneError, match=f"inputs of {layer} hold NaN"):
        collect_stats(tiny_model, make_samples(1), "wanda", 1, Progress.silent())


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_saved_statistics_load_equal(tiny_model: Model, tmp_path: Path, criterion: Criterion) -> None:
    stats = collect_stats(tiny_model, make_samples(2), criterion, 2, Progress.silent())
    stats.save(tmp_path)
    again = Stats.load(tmp_path)
    assert again.tokens == stats.tokens
    assert all(torch.equal(again.input_sq_sum[name], squares) for name, squares in stats.input_sq_sum.items())
    assert again.factor_diagonal.keys() == stats.factor_diagonal.keys()
    assert bool(stats.factor_diagonal) == (criterion == "sparsegpt")
    assert all(torch.equal(again.factor_diagonal[name], found) for name, found in stats.factor_diagonal.items())


def test_blocks_that_put_out_tuples_are_walked_alike(tiny_model: Model) -> None:
    def first(_: nn.Module, __: object, output: tuple[Tensor]) -> Tensor:
        return output[0]

    def in_tuple(forward: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
        return lambda *arguments, **keywords: (forward(*arguments, **keywords),)

    samples = make_samples(3)
    expected = collect_stats(tiny_model, samples, "wanda", 2, Progress.silent())
    for path in (tiny_model.arch.vision_blocks, tiny_model.arch.language_blocks):
        for block in tiny_model.module.get_submodule(path):
            block.forward = in_tuple(block.forward)
            block.register_forward_hook(first)  # as a model that expects tuples takes them apart
    found = collect_stats(tiny_model, samples, "wanda", 2, Progress.silent())
    assert found.tokens == expected.tokens
    assert all(torch.equal(found.input_sq_sum[name], squares) for name, squares in expected.input_sq_sum.items())


def test_all_that_a_block_is_called_with_moves_and_what_is_shared_stays_shared() -> None:
    mask = torch.ones(2, 3)
    hidden, (also, keywords), number = moved_to(torch.device("meta"), (mask, [mask, {"mask": mask}], 3), {})
    assert hidden.is_meta
    assert hidden is also is keywords["mask"]
    assert number == 3


def test_a_damping_that_had_to_be_raised_is_noted_for_the_report(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, progress = len(tiny_model.layers()), Progress.silent()
    collect_stats(tiny_model, make_samples(3), "sparsegpt", 3, progress)
    assert progress.notes == []
    raised = Curvature(torch.eye(1), torch.zeros(1).bool(), damping=0.1)
    monkeypatch.setattr(moments, "curvature", lambda _: raised)
    collect_stats(tiny_model, make_samples(3), "sparsegpt", 3, progress)
    (note,) = progress.notes
    assert f"raised from 1% to as much as 10% for {count} of {count} layers, such as model." in note
