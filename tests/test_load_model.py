"""A checkpoint either loads whole or is refused in one sentence that says what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_samples, make_tiny_llava

from slimdeploy.errors import ModelError
from slimdeploy.model import Model, encode, load_model

SUPPORTED = "llava, llava_next, idefics3, smolvlm, qwen2_5_vl, qwen3_vl, paligemma, gemma3, instructblip, qwen2_audio"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_the_hubs_layout_loads_with_equal_logits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours, hub = load_model(str(tiny_checkpoint)), load_model(str(make_tiny_llava(tmp_path, hub_layout=True)))
    samples = make_samples(3)
    with torch.inference_mode():
        expected = ours.module(**encode(ours, samples)).logits
        assert torch.equal(hub.module(**encode(hub, samples)).logits, expected)


def test_every_weight_has_the_name_that_the_hub_gives_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_checkpoint))
    names = {model.arch.hub_name(name) for name, _ in model.module.named_parameters()}
    assert names == set(load_file(make_tiny_llava(tmp_path, hub_layout=True) / "model.safetensors"))


def test_a_saved_model_loads_again_with_equal_logits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_checkpoint))
    model.save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    samples = make_samples(2)
    with torch.inference_mode():
        expected = model.module(**encode(model, samples)).logits
        assert torch.equal(again.module(**encode(again, samples)).logits, expected)


def test_layers_leave_out_the_vision_block_that_nothing_reads(tiny_checkpoint: Path) -> None:
    names = [layer.name for layer in load_model(str(tiny_checkpoint)).layers()]
    assert len(names) == 2 * 6 + 2 + 2 * 7
    assert not any("vision_tower.encoder.layers.2." in name or "lm_head" in name for name in names)


def test_a_model_is_named_after_its_folder(tiny_checkpoint: Path) -> None:
    assert load_model(str(tiny_checkpoint)).name == tiny_checkpoint.name
    assert load_model(str(tiny_checkpoint), name="owner/model").name == "owner/model"


def test_loading_prints_nothing(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(tiny_checkpoint))
    assert capfd.readouterr() == ("", "")


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _configure(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


def _index(place: object) -> Callable[[Path], object]:
    index = json.dumps({"weight_map": {"a": place}})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(index)


def _take_pixtral(folder: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder)
    vision = {"model_type": "pixtral", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = model.config.to_dict() | {"vision_config": vision | {"intermediate_size": 96}}
    LlavaForConditionalGeneration(type(model.config).from_dict(config)).save_pretrained(folder)


def _change_tokenizer(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(values | changes))

    return damage


def _change_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without("config.json"), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (_without("model.safetensors"), "model.safetensors is missing"),
        (_without("tokenizer.json"), "has no tokenizer"),
        (_without("processor_config.json"), "has no processor"),
        (_without("chat_template.jinja"), "has no chat template"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no usable tokenizer"),
        (_truncate, "truncated or no safetensors file"),
        (_lose_a_weight, "1 weights are missing or of another shape, such as .*q_proj"),
        (_change_shape, "of another shape"),
        (_lose_a_shard, "model-00002-of-00002.safetensors is missing"),
        (_pickle, "pickled weights only"),
        (_index(5), "has weights in 5, which is no safetensors file of its folder"),
        (_index(["a"]), "has weights in \\['a'\\], which is no safetensors file"),
        (_index("../model.safetensors"), "has weights in '../model.safetensors'"),
        (_index(".."), "has weights in '..'"),
        (lambda folder: (folder / "config.json").write_text('{"a":' + "[" * 100_000), "config.json cannot be read"),
        (_configure(model_type=["llava"]), "architecture '\\['llava'\\]', which slimdeploy does not know"),
        (_configure(text_config=5), "cannot be loaded"),
        (_configure(vision_feature_layer=7), "vision_feature_layer = 7 .* vision tower of 3 blocks does not have"),
        (_configure(vision_feature_layer=-9), "it has -4 to 3"),
        (_take_pixtral, "does not know this kind of tower"),
        (_change_tokenizer(eos_token=None), "without an eos_token"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(
    folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llava_llama", "vila", "minigpt4", "prismatic", "openvla", "llama", "clip"])
def test_a_family_that_is_not_supported_is_named_with_those_that_are(folder: Path, family: str) -> None:
    _configure(model_type=family)(folder)
    with pytest.raises(
        ModelError, match=f"architecture '{family}', which slimdeploy does not know; supported: {SUPPORTED}$"
    ):
        load_model(str(folder))


def test_a_folder_that_transformers_did_not_write_is_told_so_with_the_families_that_are_supported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=rf"config\.json of {folder} has no model_type, .*; give .* of one of {SUPPORTED}$"
    ):
        load_model(str(folder))


def test_a_device_that_is_not_there_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"device 'cuda:99' is not there: torch .*set model.device = 'cpu'"):
        load_model(str(tiny_checkpoint), device="cuda:99")


def test_a_tokenizer_without_a_pad_token_pads_nonetheless(folder: Path, tiny_model: Model) -> None:
    _change_tokenizer(pad_token=None)(folder)
    model = load_model(str(folder))
    samples = make_samples(4)
    assert model.processor.tokenizer.pad_token == "</s>"
    inputs, usual = encode(model, samples), encode(tiny_model, samples)
    with torch.inference_mode():
        assert torch.equal(model.module(**inputs).logits[:, -1], tiny_model.module(**usual).logits[:, -1])


@pytest.mark.parametrize("path", ["~nobody-of-this-name/model", "/nowhere/at/all", "./nowhere", "nowhere", "a/b/c"])
def test_a_path_that_is_nothing_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(path)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(folder / "config.json"))


def test_a_hub_name_without_a_hub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load_model("owner/model")


def test_a_hub_name_fetches_no_code_and_no_pickle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    asked: dict[str, list[str]] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_model("owner/model").name == "owner/model"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["owner/model"])
