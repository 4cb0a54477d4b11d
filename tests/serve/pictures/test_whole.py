"""A picture as one image of one size equals what transformers makes of it, whatever the settings say."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from slimdeploy.errors import DataError
from slimdeploy.serve.pictures import Picture, Pictures
from slimdeploy.serve.pictures.settings import ModelSettings, Settings
from slimdeploy.serve.pictures.whole import KINDS, Fit, fit_of

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


def fit(folder: Path) -> Fit:
    """What a saved image processor says, without a model beside it."""
    file = folder / "preprocessor_config.json"
    nothing = Settings(folder / "config.json", {"model_type": "llava"})
    values = {key: value for key, value in json.loads(file.read_text()).items() if value is not None}
    text: Any = None
    return fit_of(ModelSettings(nothing, nothing, nothing, Settings(file, values), text).image_settings(KINDS))


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
    np.testing.assert_allclose(fit(tmp_path)(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_equals_transformers_for_every_colour_mode(tmp_path: Path, mode: str) -> None:
    theirs = clip_processor()
    theirs.save_pretrained(tmp_path)
    image = picture(mode, (50, 41))
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(fit(tmp_path)(image), expected, atol=1e-5)


def test_equals_transformers_for_siglip(tmp_path: Path) -> None:
    theirs = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    theirs.save_pretrained(tmp_path)
    image = picture("RGB", (50, 41))
    expected = theirs(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(fit(tmp_path)(image), expected, atol=1e-5)


def test_of_pictures_that_are_decoded_on_the_way_one_is_in_memory(tmp_path: Path) -> None:
    clip_processor().save_pretrained(tmp_path)
    resize = fit(tmp_path)
    pictures = Pictures("<image>", lambda image: Picture({"pixel_values": resize(image)}, "<image>", 1))
    decoded: list[weakref.ref[Image.Image]] = []

    def decode(size: tuple[int, int]) -> Image.Image:
        assert all(earlier() is None for earlier in decoded)
        image = picture("RGB", size)
        decoded.append(weakref.ref(image))
        return image

    assert len(pictures.prepare_all(map(decode, SIZES))) == len(decoded) == len(SIZES)


def test_reads_sizes_given_as_one_number(tmp_path: Path) -> None:
    write(tmp_path, {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32})
    expected = clip_processor()(picture("RGB", (50, 41)), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(fit(tmp_path)(picture("RGB", (50, 41))), expected, atol=1e-5)


def test_refuses_a_picture_whose_resize_would_fill_the_memory(tmp_path: Path) -> None:
    clip_processor(size={"shortest_edge": 336}).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"1 x 40000 pixels is too elongated"):
        fit(tmp_path)(Image.new("RGB", (1, 40000)))
