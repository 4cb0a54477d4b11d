"""Folders in the hub's layout, at real sizes, are read as transformers reads them."""

from dataclasses import replace
from pathlib import Path

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
from odd_pictures import REAL_SHAPES, noise
from test_prompts import CONVERSATIONS, QUESTIONS, our_ids, theirs
from tiny_models import Described, assert_equal

from slimdeploy.errors import DataError


@pytest.fixture(scope="session", params=HUB_MODELS)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Described:
    return Described(write_hub_model(HUB_MODELS[request.param], tmp_path_factory.mktemp("hub")))


def described(model: HubModel, folder: Path) -> Described:
    return Described(write_hub_model(model, folder))


@pytest.mark.parametrize("size", REAL_SHAPES, ids=str)
def test_pictures_equal_transformers(hub: Described, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert_equal(hub.pictures.prepare(image), hub.expected(image))


@pytest.mark.parametrize("name", sorted(QUESTIONS.keys() & CONVERSATIONS.keys()))
def test_ids_equal_transformers(hub: Described, name: str) -> None:
    conversation = CONVERSATIONS[name]
    assert our_ids(hub, conversation) == theirs(hub, conversation)[1]


@pytest.mark.parametrize(
    ("model", "class_"),
    [
        (LLAVA, "CLIPImageProcessorFast"),
        (LLAVA, "CLIPImageProcessorPil"),
        (LLAVA_NEXT, "LlavaNextImageProcessorFast"),
        (QWEN2_5, "Qwen2_5_VLImageProcessor"),
        (PALIGEMMA, "SiglipImageProcessorFast"),
        (GEMMA3, "Gemma3ImageProcessorFast"),
    ],
    ids=short,
)
def test_a_class_has_several_names(model: HubModel, class_: str, tmp_path: Path) -> None:
    renamed = replace(model, preprocessor=model.preprocessor | {"image_processor_type": class_})
    picture = noise(50, 40)
    expected = described(model, tmp_path / "usual").expected(picture)
    assert_equal(described(renamed, tmp_path / "renamed").pictures.prepare(picture), expected)


def test_what_transformers_4_saved_beside_the_settings_changes_nothing(tmp_path: Path) -> None:
    beside = {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "disable_grouping": None,
        "do_center_crop": None,
        "input_data_format": None,
        "return_tensors": None,
    }
    saved = replace(GEMMA3, preprocessor=GEMMA3.preprocessor | beside)
    picture = noise(50, 40)
    assert_equal(described(saved, tmp_path).pictures.prepare(picture), described(GEMMA3, tmp_path).expected(picture))


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)], ids=str)
def test_a_picture_whose_resize_would_fill_the_memory_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="too elongated: resized for this model it would have"):
        described(LLAVA, tmp_path).pictures.prepare(noise(*size))


PAN_AND_SCAN_SHAPES = (
    (300, 300),
    (600, 500),
    (640, 500),
    (1024, 512),
    (512, 1024),
    (2000, 300),
    (1000, 280),
    (255, 3000),
)


@pytest.mark.parametrize("size", PAN_AND_SCAN_SHAPES, ids=str)
def test_pan_and_scan_equals_transformers(tmp_path: Path, size: tuple[int, int]) -> None:
    """transformers' processor of Gemma 3 wants to be told at every call; here the file says it."""
    model = described(replace(GEMMA3, preprocessor=GEMMA3.preprocessor | {"do_pan_and_scan": True}), tmp_path)
    image = noise(*size)
    assert_equal(model.pictures.prepare(image), model.expected(image, do_pan_and_scan=True))


def test_settings_of_pan_and_scan_are_read(tmp_path: Path) -> None:
    settings = {
        "do_pan_and_scan": True,
        "pan_and_scan_max_num_crops": 3,
        "pan_and_scan_min_crop_size": 100,
        "pan_and_scan_min_ratio_to_activate": 1.5,
    }
    model = described(replace(GEMMA3, preprocessor=GEMMA3.preprocessor | settings), tmp_path)
    for size in ((400, 300), (800, 150), (150, 800), (90, 900)):
        assert_equal(model.pictures.prepare(noise(*size)), model.expected(noise(*size), **settings))


def test_a_picture_in_one_tile_equals_transformers(tmp_path: Path) -> None:
    model = described(replace(SMOLVLM, preprocessor=SMOLVLM.preprocessor | {"do_image_splitting": False}), tmp_path)
    for size in REAL_SHAPES:
        assert_equal(model.pictures.prepare(noise(*size)), model.expected(noise(*size)))
