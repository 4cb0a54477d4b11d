"""The packed checkpoint: smaller, equal to what was packed, and verified as it will be loaded."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported
from safetensors import safe_open
from safetensors.torch import load_file

from slimdeploy.artifact import Manifest
from slimdeploy.config import CheckpointConfig, CheckpointWeights, ExportConfig
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, export, write_card
from slimdeploy.exporters.packed_checkpoint import narrowest, other_tensors
from slimdeploy.exporters.packing import pack_smallest, pack_weights
from slimdeploy.exporters.verify_packed import verify_packed
from slimdeploy.model import Model, load_model
from slimdeploy.packed import Encoding, read_packed, unpack
from slimdeploy.packed_tensor import ALL_KEPT
from slimdeploy.policy import UNSTRUCTURED
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample

WEIGHTS: tuple[CheckpointWeights, ...] = ("packed-bf16", "packed-int8", "packed-int4")
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj"


def job(weights: CheckpointWeights, prompts: list[Sample], **patterns: str) -> ExportJob:
    config = ExportConfig(format="checkpoint", checkpoint=CheckpointConfig(weights=weights))
    return ExportJob(config, prompts, patterns)


@pytest.fixture(scope="module", params=WEIGHTS)
def exported(
    request: pytest.FixtureRequest, model: Model, prompts: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    return Exported(folder, export(model, folder, job(request.param, prompts), Progress.silent()))


def test_every_prunable_matrix_is_packed_and_the_rest_is_as_it_was(exported: Exported, model: Model) -> None:
    packed, _ = read_packed(exported.folder / "model.safetensors")
    assert set(packed) == {layer.name for layer in model.layers()}
    stored = load_file(exported.folder / "model.safetensors")
    for name, tensor in model.module.state_dict().items():
        if name.removesuffix(".weight") in packed:
            assert name not in stored
        else:
            assert torch.equal(stored[name].to(tensor.dtype), tensor), name


def test_packed_weights_have_the_models_zeros_and_are_near_it(exported: Exported, model: Model) -> None:
    packed, _ = read_packed(exported.folder / "model.safetensors")
    for name, weight in packed.items():
        dense = model.linear(name).weight.detach().numpy()
        np.testing.assert_array_equal(weight.mask_as_bool(), dense != 0)
        assert np.linalg.norm(unpack(weight) - dense) < 0.2 * np.linalg.norm(dense)


def test_it_is_smaller_than_the_dense_checkpoint(exported: Exported, checkpoint_export: Exported, model: Model) -> None:
    prunable = 4 * sum(layer.weights for layer in model.layers())
    saved = _size(checkpoint_export.folder) - _size(exported.folder)
    assert saved > 0.6 * prunable


def _size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def test_the_configuration_describes_every_packed_tensor(exported: Exported) -> None:
    config = json.loads((exported.folder / "config.json").read_text())["quantization_config"]
    with safe_open(exported.folder / "model.safetensors", framework="np") as file:
        assert config["layers"] == json.loads(file.metadata()["packed"])
    assert (config["quant_method"], config["version"]) == ("slimdeploy", "1")


def test_the_verification_counts_what_it_compared(exported: Exported, prompts: list[Sample]) -> None:
    verification = exported.verification
    assert verification["weights"] in WEIGHTS
    assert verification["prompts"] == len(prompts)
    assert verification["tokens"] >= len(prompts)
    assert verification["relative_error_of_products"] < 1e-4
    assert 0 <= verification["prompts_answered_as_in_float32"] <= len(prompts)


def test_the_model_is_left_as_it_was(model: Model, prompts: list[Sample], tmp_path: Path) -> None:
    before = copy.deepcopy(model.module.state_dict())
    export(model, tmp_path, job("packed-int4", prompts[:1]), Progress.silent())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert not model.linear(Q_PROJ)._forward_pre_hooks
    assert not hasattr(model.config, "quantization_config")


def test_two_exports_are_byte_for_byte_equal(model: Model, prompts: list[Sample], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        export(model, folder, job("packed-int8", prompts[:1]), Progress.silent())
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes(), file.name


def test_a_changed_tensor_fails_the_verification(
    exported: Exported, model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "altered")
    packed, _ = read_packed(folder / "model.safetensors")
    other = packed | {Q_PROJ: pack_smallest(-unpack(packed[Q_PROJ]), packed[Q_PROJ].encoding, UNSTRUCTURED)}
    with pytest.raises(ExportError, match=rf"{Q_PROJ}\.values"):
        verify_packed(model, folder, other, prompts, Progress.silent())


def test_a_lost_file_fails_the_verification(exported: Exported, model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "incomplete")
    packed, _ = read_packed(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="does not load again"):
        verify_packed(model, folder, packed, [], Progress.silent())


def test_the_pattern_is_the_jobs(model: Model, prompts: list[Sample]) -> None:
    blocks = copy.deepcopy(model)
    with torch.no_grad():
        weight = blocks.linear(Q_PROJ).weight
        weight.fill_(1).view(64, 16, 4)[..., 2:] = 0
    packed = pack_weights(blocks, job("packed-int8", prompts, **{Q_PROJ: "2:4"}), Progress.silent())
    assert packed[Q_PROJ].pattern == "2:4"
    assert {weight.pattern for name, weight in packed.items() if name != Q_PROJ} == {UNSTRUCTURED}


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.0, ALL_KEPT), (0.1, ALL_KEPT), (0.2, UNSTRUCTURED)])
def test_a_mask_is_stored_only_where_it_pays(sparsity: float, pattern: str) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 256)).astype(np.float32)
    weight[random.random(weight.shape) < sparsity] = 0
    packed = pack_smallest(weight, Encoding("int8", 128), UNSTRUCTURED)
    assert packed.pattern == pattern
    assert not unpack(packed)[weight == 0].any()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, -0.5, 65504.0], "float16"),
        ([1.0, -0.5, 65536.0], "bfloat16"),
        ([1.0, 1.0009765625], "float16"),
        ([1e-30, 1.0], "float32"),
        ([0.1, torch.nan], "float32"),
    ],
)
def test_other_tensors_are_stored_in_the_narrowest_type_that_is_exact(values: list[float], dtype: str) -> None:
    tensor = torch.tensor(values)
    stored = narrowest(tensor)
    assert stored.dtype.name == dtype
    np.testing.assert_array_equal(stored.astype(np.float32), tensor.numpy())


def test_integers_stay_as_they_are() -> None:
    assert narrowest(torch.arange(3)).dtype == np.int64


def test_a_tied_head_is_left_to_the_embeddings(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tied = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    monkeypatch.setattr(model.module, "all_tied_weights_keys", tied)
    assert "lm_head.weight" not in other_tensors(model, {})


def test_a_model_in_half_precision_is_refused(checkpoint: Path, prompts: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"bfloat16.*load it as float32"):
        export(load_model(str(checkpoint), "bfloat16"), tmp_path, job("packed-int8", prompts), Progress.silent())


def test_the_card_says_how_to_load_it_and_what_was_checked(exported: Exported, tmp_path: Path) -> None:
    write_card(tmp_path, Manifest("checkpoint", "tiny", "llava", verification=exported.verification))
    card = (tmp_path / "README.md").read_text()
    assert "import slimdeploy.transformers_plugin" in card
    assert "greedy tokens equal on 4 prompts" in card
    assert f"Packing ('{exported.verification['weights']}') left" in card
