"""What holds for every family: its layers are found, measured as a plain forward pass sees them, pruned, restored,
searched, saved and loaded again.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, samples_for
from safetensors.torch import load_file, save_file
from tiny import masks_of
from torch import Tensor, nn

from slimdeploy.config import BudgetConfig, Config, ExportConfig, RestoreConfig, SearchConfig
from slimdeploy.errors import DataError, ExportError, ModelError
from slimdeploy.evaluate import greedy_answers
from slimdeploy.exporters import ExportJob, check, export
from slimdeploy.losses import text_batch, text_logits
from slimdeploy.model import IGNORED_LABEL, Model, encode, load_model
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Stats, apply_masks, collect_stats
from slimdeploy.restore import restore
from slimdeploy.search.journal import Journal
from slimdeploy.search.model_search import search_policy
from slimdeploy.streaming import ShardWriter, load_streamed

SILENT = Progress.silent()


def logits(model: Model, count: int = 3) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model.module(**encode(model, samples_for(model, count))).logits
    return result


def half(model: Model) -> Policy:
    return Policy({layer.name: Level(0.5) for layer in model.layers()})


class TestLayers:
    def test_are_found_in_every_tower(self, model: Model, family: str) -> None:
        towers = [layer.tower for layer in model.layers()]
        assert tuple(towers.count(tower) for tower in ("vision", "projector", "language")) == FAMILIES[family].layers
        assert set(FAMILIES[family].names) <= {layer.name for layer in model.layers()}

    def test_are_neither_embeddings_nor_head(self, model: Model) -> None:
        outside = {id(model.module.get_submodule(model.arch.lm_head)), id(model.pretrained.get_input_embeddings())}
        assert outside.isdisjoint(id(model.linear(layer.name)) for layer in model.layers())

    def test_stand_in_forward_order(self, model: Model) -> None:
        towers = [layer.tower for layer in model.layers()]
        assert towers == sorted(towers, key=["vision", "projector", "language"].index)

    def test_all_change_the_answer(self, model: Model) -> None:
        """None is dead weight, whose pruning would cost nothing and tell nothing."""
        inputs = encode(model, samples_for(model, 2))
        model.module(**inputs, use_cache=False).logits.float().square().sum().backward()
        for layer in model.layers():
            gradient = model.linear(layer.name).weight.grad
            assert gradient is not None, layer.name
            assert gradient.any(), layer.name


class TestNames:
    def test_every_weight_that_transformers_saves_is_found(self, model: Model, checkpoint: Path) -> None:
        stored = set(load_file(checkpoint / "model.safetensors"))
        found = {model.arch.stored_name(name, stored) for name in _parameters(model)}
        assert found == stored

    def test_published_names_are_as_documented(self, model: Model, family: str) -> None:
        for ours, published in FAMILIES[family].names.items():
            assert model.arch.hub_name(f"{ours}.weight") == f"{published}.weight"

    def test_a_weight_that_is_not_stored_is_named(self, model: Model) -> None:
        name = f"{model.layers()[0].name}.weight"
        with pytest.raises(ModelError, match=f"no weight '{name}'"):
            model.arch.stored_name(name, {"another.weight"})

    def test_a_checkpoint_under_published_names_loads_with_equal_logits(
        self, model: Model, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(checkpoint, tmp_path / "published")
        weights = {model.arch.hub_name(name): tensor.contiguous() for name, tensor in _parameters(model).items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(logits(load_model(str(folder))), logits(model))


def _parameters(model: Model) -> dict[str, Tensor]:
    """Without those that are tied to others, which no checkpoint holds."""
    tied = set(model.pretrained.all_tied_weights_keys)
    return {name: tensor for name, tensor in model.module.state_dict().items() if name not in tied}


class TestInputs:
    def test_labels_are_the_answer_and_the_end_of_the_turn(self, model: Model) -> None:
        samples = samples_for(model, 3)
        tokenizer = model.processor.tokenizer
        for sample, labels in zip(samples, encode(model, samples, answers=True)["labels"], strict=True):
            text = tokenizer.decode(labels[labels != IGNORED_LABEL])
            assert text.strip() in {f"{sample.answers[0]}{end}" for end in model.end_tokens()}

    def test_a_sample_without_an_answer_has_no_labels(self, model: Model) -> None:
        known, unknown = samples_for(model, 2)
        labels = encode(model, [known, replace(unknown, answers=())], answers=True)["labels"]
        assert (labels[0] != IGNORED_LABEL).any()
        assert (labels[1] == IGNORED_LABEL).all()

    def test_padding_does_not_change_logits(self, model: Model) -> None:
        samples = samples_for(model, 3)
        with torch.inference_mode():
            together = model.module(**encode(model, samples, answers=False)).logits[:, -1]
            alone = torch.cat([model.module(**encode(model, [sample])).logits[:, -1] for sample in samples])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_an_answer_does_not_change_what_comes_before_it(self, model: Model) -> None:
        """The prompt's last token predicts the answer's first, whether the answer is there or not."""
        (sample,) = samples_for(model, 1)
        batch = encode(model, [sample], answers=True)
        first = int((batch.pop("labels")[0] != IGNORED_LABEL).nonzero()[0])
        with torch.inference_mode():
            answered = model.module(**batch).logits[0, first - 1]
            asked = model.module(**encode(model, [sample])).logits[0, -1]
        torch.testing.assert_close(answered, asked, rtol=1e-4, atol=1e-4)

    def test_media_change_the_answer(self, model: Model) -> None:
        one, other = samples_for(model, 2)
        other = replace(other, question=one.question)
        with torch.inference_mode():
            different = [model.module(**encode(model, [sample])).logits[0, -1] for sample in (one, other)]
        assert not torch.allclose(*different, atol=1e-3)

    def test_only_text_behind_the_media_counts(self, model: Model) -> None:
        batch = text_batch(model, samples_for(model, 3))
        media = (batch.inputs["input_ids"] == model.media_token_id)[:, -batch.tail :]
        assert not (media & (batch.weight > 0)).any()
        assert (batch.weight[batch.is_answer] == 1).all()
        assert text_logits(model, batch).shape[:2] == batch.weight.shape

    def test_a_question_without_media_is_answered_or_refused(self, model: Model) -> None:
        seeing, blind = samples_for(model, 2)
        samples = [seeing, replace(blind, images=(), sounds=())]
        if model.arch.fewest:
            with pytest.raises(DataError, match=rf"sample '{blind.id}' has 0 .* take the sample out"):
                encode(model, samples)
            return
        with torch.inference_mode():
            together = model.module(**encode(model, samples)).logits[1, -1]
            alone = model.module(**encode(model, samples[1:])).logits[0, -1]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_media_of_the_other_kind_are_refused(self, model: Model) -> None:
        (sample,) = samples_for(model, 1)
        swapped = replace(sample, images=sample.sounds, sounds=sample.images)
        with pytest.raises(DataError, match=rf"sample '{sample.id}' has .*'{model.arch.model_type}'.* takes"):
            encode(model, [swapped])


class TestCompression:
    def test_blocks_that_stay_on_disk_compute_the_same(self, model: Model, checkpoint: Path, tmp_path: Path) -> None:
        streamed = load_streamed(str(checkpoint), dtype="float32")
        torch.testing.assert_close(logits(streamed), logits(model), rtol=1e-4, atol=1e-4)
        samples = samples_for(model, 2)
        stats, expected = (collect_stats(each, samples, "wanda", 2, SILENT) for each in (streamed, model))
        for name, squares in expected.input_sq_sum.items():
            torch.testing.assert_close(stats.input_sq_sum[name], squares, rtol=1e-4, atol=1e-4, msg=name)
        ShardWriter(streamed, tmp_path).finish()
        assert torch.equal(logits(load_model(str(tmp_path))), logits(model))

    def test_statistics_block_by_block_equal_a_plain_forward_pass(self, model: Model) -> None:
        samples = samples_for(model, 4, seconds=(1.0,))  # a plain forward pass cannot leave out silence that pads
        stats = collect_stats(model, samples, "wanda", 3, SILENT)
        expected = _with_plain_hooks(model, samples)
        assert set(stats.input_sq_sum) == set(expected) == {layer.name for layer in model.layers()}
        for name, squares in expected.items():
            torch.testing.assert_close(stats.input_sq_sum[name], squares, rtol=1e-4, atol=1e-5, msg=name)

    def test_as_many_tokens_of_the_media_count_as_the_language_model_is_given(self, model: Model) -> None:
        """What pads shorter media does not."""
        samples = samples_for(model, 3)
        tokens = collect_stats(model, samples, "wanda", 3, SILENT).tokens
        given = int((encode(model, samples)["input_ids"] == model.media_token_id).sum())
        last = [name for name, _ in model.projector_linears()][-1:]
        # Tokens that are neither merged nor dropped on their way.
        if model.arch.model_type in {"paligemma", "instructblip", "qwen2_audio"}:
            assert [tokens[name] for name in last] == [given]

    def test_a_mask_is_zeros_after_pruning_and_after_restoration(self, model: Model) -> None:
        masks = masks_of(model, half(model), "magnitude", Stats())
        before = {name: model.linear(name).weight.detach().clone() for name in masks}
        restore(model, masks, samples_for(model, 4), RestoreConfig(steps=2, batch_size=2), SILENT)
        for name, mask in masks.items():
            weight = model.linear(name).weight
            assert torch.equal(weight == 0, ~mask)
            assert abs(float(mask.float().mean()) - 0.5) < 0.02
        moved = sum(not torch.equal(model.linear(name).weight, before[name] * mask) for name, mask in masks.items())
        assert moved > len(masks) / 2

    def test_a_search_of_one_generation_meets_its_budget(self, model: Model, tmp_path: Path) -> None:
        budget = BudgetConfig(sparsity=0.5)
        settings = SearchConfig(generations=1, offspring=2, survivors=1, projector_steps=1, budget=budget)
        stats = collect_stats(model, samples_for(model, 2), "wanda", 2, SILENT)
        samples: dict[Any, Any] = {
            "calibration": samples_for(model, 2),
            "search": samples_for(model, 2, seed=1),
            "validation": samples_for(model, 4, seed=2),
        }
        found = search_policy(model, stats, samples, Config(search=settings), SILENT, Journal(tmp_path))
        assert found.policy.sparsity(model.layers()) >= 0.5

    def test_a_greedy_answer_begins_with_the_likeliest_token(self, model: Model) -> None:
        samples = samples_for(model, 3)
        with torch.inference_mode():
            likeliest = model.module(**encode(model, samples)).logits[:, -1].argmax(-1)
        tokenizer = model.processor.tokenizer
        expected = [tokenizer.decode(token, skip_special_tokens=True).rstrip("\ufffd").strip() for token in likeliest]
        assert greedy_answers(model, samples, 1, 3, SILENT) == expected
        # With tied embeddings a random model repeats the end of its prompt, which may be a newline.
        assert any(greedy_answers(model, samples, 8, 3, SILENT)) or model.pretrained.all_tied_weights_keys


class TestSaving:
    def test_without_pruning_nothing_changes(self, model: Model, tmp_path: Path) -> None:
        model.save(tmp_path)
        assert torch.equal(logits(load_model(str(tmp_path))), logits(model))

    def test_a_pruned_model_loads_again_with_equal_logits(self, model: Model, tmp_path: Path) -> None:
        dense = logits(model)
        apply_masks(model, masks_of(model, half(model), "magnitude", Stats()))
        model.save(tmp_path)
        again = load_model(str(tmp_path))
        assert torch.equal(logits(again), logits(model))
        assert not torch.equal(logits(again), dense)

    @pytest.mark.parametrize("weights", ["dense", "packed-int8"])
    def test_the_checkpoint_export_holds_it(self, model: Model, tmp_path: Path, weights: str) -> None:
        apply_masks(model, masks_of(model, half(model), "magnitude", Stats()))
        config = ExportConfig.model_validate({"format": "checkpoint", "checkpoint": {"weights": weights}})
        verification = export(model, tmp_path, ExportJob(config, samples_for(model, 2)), SILENT)
        assert verification["prompts" if weights == "packed-int8" else "prompts_with_equal_logits"] == 2
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()}
        assert modes <= {0o755}, "another user may serve what was exported"

    def test_the_vllm_export_refuses_it_by_name(self, model: Model, family: str) -> None:
        with pytest.raises(ExportError, match=f"'{family}'.*export.format = 'checkpoint'"):
            check(model, ExportConfig(format="vllm"))


def _with_plain_hooks(model: Model, samples: list[Any]) -> Mapping[str, Tensor]:
    """One sample at a time, so that there is no padding to leave out."""
    sums: dict[str, Tensor] = {}

    def count(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            squares = arguments[0].detach().double().flatten(0, -2).square().sum(0)
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return hook

    handles = [model.linear(layer.name).register_forward_pre_hook(count(layer.name)) for layer in model.layers()]
    for sample in samples:
        batch = {name: tensor for name, tensor in encode(model, [sample], answers=True).items() if name != "labels"}
        with torch.inference_mode():
            model.module(**batch)
    for handle in handles:
        handle.remove()
    return sums
