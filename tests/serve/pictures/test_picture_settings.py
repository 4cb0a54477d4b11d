"""Settings that would change a picture and that nobody here knows are errors that name file, key and value."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_files import (
    GEMMA3,
    HUB_MODELS,
    LLAVA,
    LLAVA_NEXT,
    PALIGEMMA,
    QWEN2_5,
    SMOLVLM,
    HubModel,
    short,
    write_hub_model,
)
from tiny_models import NAMES, Described

from slimdeploy.errors import ArtifactError
from slimdeploy.serve.model_files import read_facts

PREPROCESSOR = r"preprocessor_config\.json"


def load(model: HubModel, folder: Path) -> None:
    _ = Described(write_hub_model(model, folder)).pictures


@pytest.mark.parametrize("name", HUB_MODELS)
@pytest.mark.parametrize("file", ["preprocessor", "processor"])
def test_an_unknown_key_is_refused(name: str, file: str, tmp_path: Path) -> None:
    model = HUB_MODELS[name]
    changed = getattr(model, file) | {"do_flip": True}
    with pytest.raises(ArtifactError, match=rf"{file}_config\.json has do_flip = true; this server does not know"):
        load(replace(model, **{file: changed}), tmp_path)


@pytest.mark.parametrize("name", HUB_MODELS)
def test_an_unknown_key_without_a_value_is_passed_over(name: str, tmp_path: Path) -> None:
    model = HUB_MODELS[name]
    load(replace(model, preprocessor=model.preprocessor | {"do_flip": None}), tmp_path)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (LLAVA, {"do_pad": True}, "do_pad = true; this server knows it as false alone"),
        (LLAVA, {"size": {"longest_edge": 3}}, 'size = {"longest_edge": 3}; .* shortest_edge, or with height'),
        (LLAVA, {"image_mean": [1]}, r"image_mean = \[1\]; it must hold 3 numbers"),
        (LLAVA, {"resample": 9}, "resample = 9; it must be one of Pillow's filters"),
        (LLAVA, {"size": "large"}, 'size = "large"; it must hold numbers of pixels'),
        (LLAVA, {"rescale_factor": "x"}, 'rescale_factor = "x"; a number must stand there'),
        (LLAVA, {"crop_size": {"height": 224, "width": 224}}, "the side of an image is 224 by crop_size of .* but 336"),
        (LLAVA, {"do_center_crop": False}, "takes squares of one size"),
        (LLAVA, {"image_processor_type": "Qwen2VLImageProcessor"}, "this server knows CLIPImageProcessor, Siglip"),
        (LLAVA, {"image_processor_type": None}, "names the image processor None"),
        (LLAVA_NEXT, {"do_resize": False}, "do_resize = false; this server knows it as true alone"),
        (LLAVA_NEXT, {"aspect_ratio_setting": "pad"}, 'aspect_ratio_setting = "pad"; .* "anyres" alone'),
        (LLAVA_NEXT, {"image_grid_pinpoints": [[336, 336]]}, "the list of resolutions is"),
        (LLAVA_NEXT, {"size": {"shortest_edge": 224}}, "the side of a tile is 224 by size of .* but 336 by crop_size"),
        (SMOLVLM, {"size": {"longest_edge": 8192}}, "longest_edge of 4096 at most"),
        (
            SMOLVLM,
            {"max_image_size": {"longest_edge": 364}},
            "the side of a tile is 364 by max_image_size of .* but 384",
        ),
        (SMOLVLM, {"size": {"height": 10, "width": 10}}, "knows it with longest_edge alone"),
        (QWEN2_5, {"do_resize": False}, "do_resize = false"),
        (QWEN2_5, {"size": {"height": 10, "width": 10}}, "shortest_edge and longest_edge, which count pixels"),
        (QWEN2_5, {"patch_size": 16}, "patch_size is 16 by .* but 14 by vision_config.patch_size"),
        (QWEN2_5, {"merge_size": 0}, "merge_size"),
        (PALIGEMMA, {"image_seq_length": 1024}, "how many tokens a picture has is 256 by .* but 1024"),
        (GEMMA3, {"do_resize": False}, "do_resize = false"),
        (GEMMA3, {"image_std": [0.5, 0, 0.5]}, r"image_std = \[0.5, 0, 0.5\]; nothing can be divided by 0"),
        (GEMMA3, {"image_seq_length": 64}, "how many tokens a picture has is 256 by mm_tokens_per_image"),
        (GEMMA3, {"pan_and_scan_max_num_crops": 0}, "pan_and_scan_max_num_crops = 0; a whole number above 0"),
    ],
    ids=short,
)
def test_a_setting_that_is_not_honoured_is_refused(
    model: HubModel, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load(replace(model, preprocessor=model.preprocessor | settings), tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (LLAVA, {"patch_size": 16}, "the side of a patch is 14 by vision_config.patch_size .* but 16"),
        (LLAVA, {"vision_feature_select_strategy": "full"}, "which features are taken is default"),
        (LLAVA, {"num_additional_image_tokens": 0}, "how many features stand before the patches' is 1"),
        (LLAVA, {"image_token": "<pad>"}, "the image token is <image>"),
        (SMOLVLM, {"image_seq_len": 169}, "how many tokens a tile has is 81"),
        (GEMMA3, {"image_seq_length": 64}, "how many tokens a picture has is 256"),
    ],
    ids=short,
)
def test_a_processor_that_contradicts_the_model_is_refused(
    model: HubModel, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(replace(model, processor=model.processor | settings), tmp_path)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (LLAVA, {"vision_feature_select_strategy": "some"}, "which features are taken is some"),
        (
            LLAVA,
            {"vision_config": {"model_type": "vit", "patch_size": 14}},
            "knows the towers clip_vision_model, siglip",
        ),
        (LLAVA, {"vision_config": {"model_type": "clip_vision_model"}}, "has no vision_config.patch_size"),
        (LLAVA_NEXT, {"vision_feature_select_strategy": "full"}, "which features are taken is full"),
    ],
    ids=short,
)
def test_a_model_that_is_not_known_is_refused(
    model: HubModel, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(replace(model, config=model.config | settings), tmp_path)


def test_features_of_a_tile_that_make_no_square_are_refused(tmp_path: Path) -> None:
    full = {"vision_feature_select_strategy": "full"}
    model = replace(LLAVA_NEXT, config=LLAVA_NEXT.config | full, processor=LLAVA_NEXT.processor | full)
    with pytest.raises(ArtifactError, match="577 features of a tile make no square"):
        load(model, tmp_path)


def test_an_image_token_that_a_message_could_forge_is_refused(tmp_path: Path) -> None:
    folder = write_hub_model(LLAVA, tmp_path)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    for token in values["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<image>"
    file.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json has no special token with the id 4"):
        _ = Described(folder).pictures


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    folder = write_hub_model(replace(LLAVA, config=LLAVA.config | {"model_type": "mllama"}), tmp_path)
    with pytest.raises(ArtifactError, match=f"the model type 'mllama', .*; it serves {', '.join(NAMES)}"):
        read_facts(folder)


def test_a_part_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json holds no JSON object where vision_config"):
        load(replace(LLAVA, config=LLAVA.config | {"vision_config": 3}), tmp_path / "config")
    with pytest.raises(ArtifactError, match=r"processor_config\.json holds no JSON object where image_processor"):
        load(replace(LLAVA, processor={"image_processor": "CLIP"}), tmp_path / "processor")


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    folder = write_hub_model(LLAVA, tmp_path)
    file = folder / "preprocessor_config.json"
    for text, message in (("[1]", "no JSON object"), ("{", "cannot be read as JSON"), ('{"a":' * 100_000, "as JSON")):
        file.write_text(text)
        with pytest.raises(ArtifactError, match=rf"{PREPROCESSOR}.*{message}"):
            _ = Described(folder).pictures
    file.unlink()
    with pytest.raises(ArtifactError, match=rf"{PREPROCESSOR} is missing"):
        _ = Described(folder).pictures
