"""The two safetensors exports: they load again as they were, under the names that their reader expects."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from exported import Exported
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_tiny_llava

from slimdeploy.config import ExportConfig
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, check, checkpoint, export, vllm
from slimdeploy.model import Model, load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample


@pytest.fixture(params=["checkpoint_export", "vllm_export"])
def exported(request: pytest.FixtureRequest) -> Exported:
    fixture: Exported = request.getfixturevalue(request.param)
    return fixture


def test_loaded_again_every_weight_is_the_same_and_pruned_ones_are_zero(exported: Exported, model: Model) -> None:
    again = load_model(str(exported.folder))
    for name, weight in model.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
    for layer in again.layers():
        assert (again.linear(layer.name).weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_verification_counts_what_it_compared(exported: Exported, model: Model, prompts: list[Sample]) -> None:
    assert exported.verification["weights_equal"] == len(model.module.state_dict())
    assert exported.verification["prompts_with_equal_logits"] == len(prompts)
    assert exported.verification["zeros"] >= sum(layer.weights for layer in model.layers()) // 2


def test_a_changed_weight_fails_the_verification(
    exported: Exported, model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "altered")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name][0, 0] += 0.001
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj"):
        checkpoint.verify_checkpoint(model, folder, prompts, Progress.silent())


def test_a_lost_file_fails_the_verification(model: Model, prompts: list[Sample], tmp_path: Path) -> None:
    checkpoint.save_settings(model, tmp_path)
    with pytest.raises(ExportError, match="does not load again"):
        checkpoint.verify_checkpoint(model, tmp_path, prompts, Progress.silent())


def test_vllm_weights_have_the_names_of_the_hub(vllm_export: Exported, tmp_path: Path) -> None:
    hub = make_tiny_llava(tmp_path / "hub", hub_layout=True)
    assert names_in(vllm_export.folder) == names_in(hub)
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names_in(vllm_export.folder)
    assert "language_model.lm_head.weight" in names_in(vllm_export.folder)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_a_hub_checkpoint_is_exported_under_the_same_names_and_values(prompts: list[Sample], tmp_path: Path) -> None:
    hub = make_tiny_llava(tmp_path / "hub", hub_layout=True)
    out = tmp_path / "out"
    out.mkdir()
    export(load_model(str(hub)), out, ExportJob(ExportConfig(format="vllm"), prompts), Progress.silent())
    before, after = load_file(hub / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_head_is_left_to_the_embeddings(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tied = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    monkeypatch.setattr(model.module, "all_tied_weights_keys", tied)
    names = vllm.renamed_weights(model)
    assert "language_model.lm_head.weight" not in names
    assert "language_model.model.embed_tokens.weight" in names


def test_configurations_name_the_model_and_no_sparsity(
    exported: Exported, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model.config, "sparsity_config", {"format": "dense"}, raising=False)
    checkpoint.save_settings(model, tmp_path)
    for folder in (exported.folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlavaForConditionalGeneration"]
        assert config["dtype"] == "float32"
        assert not {"sparsity_config", "quantization_config"} & config.keys()


def test_tokenizer_processor_and_generation_settings_are_there(exported: Exported) -> None:
    files = {file.name for file in exported.folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
    } <= files
    assert "local_files_only" not in (exported.folder / "tokenizer_config.json").read_text()


def test_files_can_be_read_by_another_user(exported: Exported) -> None:
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in exported.folder.iterdir())


def test_a_quantised_model_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "quantization_config", {"quant_method": "gptq"}, raising=False)
    for name in ("onnx", "vllm", "checkpoint"):
        with pytest.raises(ExportError, match="gptq"):
            check(model, ExportConfig(format=name))
