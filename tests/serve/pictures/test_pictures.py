"""Every family's pictures equal those of transformers' PIL processors, and so do the texts that stand for them."""

import io

import numpy as np
import pytest
from odd_pictures import ELONGATED, MODES, SHAPES, encoded, noise
from PIL import Image, ImageOps
from tiny_models import Described, assert_equal

from slimdeploy.errors import DataError
from slimdeploy.images import load_image


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_pictures_of_every_shape_equal_transformers(described: Described, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert_equal(described.pictures.prepare(image), described.expected(image))


@pytest.mark.parametrize("name", MODES)
def test_pictures_of_every_mode_and_file_equal_transformers(described: Described, name: str) -> None:
    expected = described.expected(ImageOps.exif_transpose(Image.open(io.BytesIO(MODES[name]))))
    assert_equal(described.pictures.prepare(load_image(MODES[name])), expected)
    assert_equal(described.pictures.prepare(ImageOps.exif_transpose(Image.open(io.BytesIO(MODES[name])))), expected)


@pytest.mark.parametrize("size", ELONGATED, ids=str)
def test_elongated_pictures_equal_transformers_or_both_refuse(described: Described, size: tuple[int, int]) -> None:
    image = noise(*size)
    if described.facts.family.startswith("qwen"):
        with pytest.raises(ValueError, match="aspect ratio"):
            described.expected(image)
        with pytest.raises(DataError, match="pixels is too elongated"):
            described.pictures.prepare(image)
    else:
        assert_equal(described.pictures.prepare(image), described.expected(image))


@pytest.mark.parametrize("size", [*SHAPES, *ELONGATED], ids=str)
def test_tokens_grid_and_arrays_belong_together(described: Described, size: tuple[int, int]) -> None:
    family = described.facts.family
    if family.startswith("qwen") and size in ELONGATED:
        return
    picture = described.pictures.prepare(noise(*size))
    ids = described.text.encode(picture.placeholder, has_special_tokens=True)
    assert ids.count(described.facts.image_token) == picture.tokens
    assert picture.inputs["pixel_values"].dtype == np.float32
    assert (picture.grid is not None) == family.startswith("qwen")
    if picture.grid is not None:
        assert np.prod(picture.grid) == picture.tokens
    if family == "llava_next":
        assert picture.inputs["feature_index"].shape == (picture.tokens,)


def test_a_picture_is_the_same_alone_and_among_others(described: Described) -> None:
    images = [noise(40, 30), noise(30, 80), noise(90, 20)]
    together = described.pictures.prepare_all(iter(images))
    for image, picture in zip(images, together, strict=True):
        alone = described.pictures.prepare(image)
        assert alone.placeholder == picture.placeholder
        for name, array in alone.inputs.items():
            np.testing.assert_array_equal(array, picture.inputs[name])


def test_a_large_picture_equals_transformers(described: Described) -> None:
    image = load_image(encoded(noise(3000, 2000), "JPEG"))
    assert_equal(described.pictures.prepare(image), described.expected(image))
