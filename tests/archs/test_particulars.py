"""What single families do in their own way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, make_checkpoint, noise_wav, samples_for, vision_settings

from slimdeploy.artifact import Manifest
from slimdeploy.errors import DataError, ModelError
from slimdeploy.exporters import write_card
from slimdeploy.losses import text_batch
from slimdeploy.model import Model, encode, load_model
from slimdeploy.streaming import load_streamed


def load(name: str, folder: Path) -> Model:
    return load_model(str(make_checkpoint(FAMILIES[name], folder)))


def test_paligemmas_question_predicts_nothing(tmp_path: Path) -> None:
    """Its tokens have seen what comes behind them."""
    model = load("paligemma", tmp_path)
    known, unknown = samples_for(model, 2)
    batch = text_batch(model, [known, replace(unknown, answers=())])
    assert torch.equal(batch.weight[0].bool(), batch.is_answer[0])
    assert batch.weight[1].nonzero().tolist() == [[batch.tail - 1]]


def test_the_q_formers_questions_begin_at_its_first_position(tmp_path: Path) -> None:
    model = load("instructblip", tmp_path)
    mask = encode(model, samples_for(model, 3))["qformer_attention_mask"]
    assert not mask.all()
    assert mask[:, 0].all()


@pytest.mark.parametrize("read", [load_model, load_streamed])
def test_an_instructblip_with_an_encoder_and_a_decoder_is_refused(tmp_path: Path, read: Callable[[str], Model]) -> None:
    make_checkpoint(FAMILIES["instructblip"], tmp_path)
    t5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 320}
    config = transformers.InstructBlipConfig(
        vision_config=vision_settings(),
        qformer_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "encoder_hidden_size": 32},
        text_config=t5,
        num_query_tokens=3,
    )
    transformers.InstructBlipForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"does not know this kind of .* language model in the family 'instructblip'"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "rate", "sentence"),
    [(1.5, 16_000, "lasts 1.5 seconds, and the model hears 1.0"), (0.5, 8_000, "8000 samples a second.*hears 16000")],
)
def test_a_sound_that_does_not_fit_the_model_is_told_with_the_samples_name(
    tmp_path: Path, seconds: float, rate: int, sentence: str
) -> None:
    model = load("qwen2_audio", tmp_path)
    (sample,) = samples_for(model, 1)
    sound = noise_wav(np.random.default_rng(0), seconds, rate)
    with pytest.raises(DataError, match=f"sample '{sample.id}': sound .*{sentence}"):
        encode(model, [replace(sample, sounds=(sound,))])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
@pytest.mark.parametrize(
    "stored", ["video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json"]
)
def test_what_a_checkpoint_says_of_videos_is_saved_again(name: str, stored: str, tmp_path: Path) -> None:
    source = make_checkpoint(FAMILIES[name], tmp_path / "source")
    settings = {"fps": 3, "video_processor_type": "AnyVideoProcessor"}
    old = json.loads((source / "processor_config.json").read_text())
    said = {"processor_config.json": old | {"video_processor": settings}}.get(stored, settings)
    if stored == "preprocessor_config.json":  # as older checkpoints have it: pictures and videos share it
        said = settings = old["image_processor"] | settings
    (source / stored).write_text(json.dumps(said))
    load_model(str(source)).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "video_preprocessor_config.json").read_text()) == settings
    assert json.loads((tmp_path / "saved" / "processor_config.json").read_text())["processor_class"].endswith(
        "Processor"
    )
    load_model(str(tmp_path / "saved"))


def test_rows_of_positions_are_left_to_models_that_count_in_three_dimensions(tmp_path: Path) -> None:
    model = load("qwen2_5_vl", tmp_path)
    batch = encode(model, samples_for(model, 3))
    assert "position_ids" not in batch
    counted = model.module.model.compute_3d_position_ids(
        batch["input_ids"],
        batch["image_grid_thw"],
        None,
        None,
        batch["attention_mask"],
        None,
        mm_token_type_ids=batch["mm_token_type_ids"],
    )
    assert counted.shape == (3, *batch["input_ids"].shape)
    assert not torch.equal(counted[1], counted[2]), "rows and columns of a picture differ"


def test_the_card_of_a_model_that_hears_says_so(tmp_path: Path) -> None:
    write_card(tmp_path, Manifest("checkpoint", "any", "qwen2_audio"))
    assert "pipeline_tag: audio-text-to-text" in (tmp_path / "README.md").read_text()
