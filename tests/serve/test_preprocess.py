"""Preprocessing without transformers equals transformers' own."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from slimdeploy.errors import ArtifactError, DataError
from slimdeploy.serve.preprocess import load_preprocessor

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK")
SIZES = ((48, 48), (1, 1), (7, 301), (333, 47), (64, 63), (24, 25), (2, 3))
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"size": {"height": 40, "width": 30}},
    {"crop_size": {"height": 31, "width": 60}},
    {"do_resize": False},
    {"do_center_crop": False, "size": {"height": 33, "width": 17}, "resample": 2},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "resample": 0},
)


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size[0])
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "P":
        return Image.fromarray(pixels[..., :3].copy(), "RGB").quantize(16)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def clip_processor(**settings: Any) -> CLIPImageProcessorPil:
    defaults = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return CLIPImageProcessorPil(**defaults | settings)


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_transformers_for_every_size_and_setting(
    tmp_path: Path, size: tuple[int, int], settings: dict[str, Any]
) -> None:
    theirs = clip_processor(**settings)
    theirs.save_pretrained(tmp_path)
    image = picture("RGB", size)
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(load_preprocessor(tmp_path)([image]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_equals_transformers_for_every_colour_mode(tmp_path: Path, mode: str) -> None:
    theirs = clip_processor()
    theirs.save_pretrained(tmp_path)
    image = picture(mode, (50, 41))
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(load_preprocessor(tmp_path)([image]), expected, atol=1e-5)


def test_equals_transformers_for_siglip(tmp_path: Path) -> None:
    theirs = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    theirs.save_pretrained(tmp_path)
    image = picture("RGB", (50, 41))
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(load_preprocessor(tmp_path)([image]), expected, atol=1e-5)


def test_reads_both_layouts_of_a_processor_alike(checkpoint: Path, hub_checkpoint: Path) -> None:
    image = picture("RGB", (50, 41))
    ours, hubs = load_preprocessor(checkpoint), load_preprocessor(hub_checkpoint)
    np.testing.assert_array_equal(ours([image]), hubs([image]))


def test_several_images_are_one_batch(tmp_path: Path) -> None:
    clip_processor().save_pretrained(tmp_path)
    batch = load_preprocessor(tmp_path)([picture("RGB", size) for size in SIZES])
    assert batch.shape == (len(SIZES), 3, 32, 32)
    assert batch.dtype == np.float32


def test_of_pictures_that_are_decoded_on_the_way_one_is_in_memory(tmp_path: Path) -> None:
    clip_processor().save_pretrained(tmp_path)
    decoded: list[weakref.ref[Image.Image]] = []

    def decode(size: tuple[int, int]) -> Image.Image:
        assert all(earlier() is None for earlier in decoded)
        image = picture("RGB", size)
        decoded.append(weakref.ref(image))
        return image

    assert len(load_preprocessor(tmp_path)(map(decode, SIZES))) == len(decoded) == len(SIZES)


def test_reads_sizes_given_as_one_number(tmp_path: Path) -> None:
    write(tmp_path, {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32})
    expected = clip_processor()(picture("RGB", (50, 41)), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(load_preprocessor(tmp_path)([picture("RGB", (50, 41))]), expected, atol=1e-5)


def test_refuses_a_picture_whose_resize_would_fill_the_memory(tmp_path: Path) -> None:
    clip_processor(size={"shortest_edge": 336}).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"1 x 40000 pixels is too elongated"):
        load_preprocessor(tmp_path)([Image.new("RGB", (1, 40000))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor"),
        ({}, "None"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 3}}, "longest_edge"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, "do_pad"),
        ({"image_processor_type": "CLIPImageProcessor", "image_mean": [1]}, "reshape"),
    ],
)
def test_refuses_a_processor_that_it_does_not_know(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load_preprocessor(write(tmp_path, values))


def test_names_a_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"preprocessor_config\.json is missing"):
        load_preprocessor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="no JSON object"):
        load_preprocessor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        load_preprocessor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        load_preprocessor(tmp_path)
