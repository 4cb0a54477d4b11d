"""The index of LLaVA-NeXT's features gathers what the model's own packing puts together."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_pictures import ELONGATED, SHAPES
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from slimdeploy.serve.pictures.any_resolution import AnyResolution
from slimdeploy.serve.pictures.pixels import Colours

Size = tuple[int, int]
COLOURS = Colours(np.ones((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32))
HUB = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Side of a tile and of a patch, and resolutions as (height, width).
SETTINGS = (
    (24, 12, ((24, 48), (48, 24), (48, 48))),
    (336, 14, HUB),
    (384, 14, ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))),
    (30, 6, ((30, 30),)),
)


def packed_by_the_model(size: Size, side: int, patch: int, resolutions: tuple[Size, ...]) -> list[int]:
    """Every feature is a number of its own: its row among those of all tiles; the newline is the last."""
    config: Any = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=side, patch_size=patch),
        image_grid_pinpoints=[list(resolution) for resolution in resolutions],
    )
    tiling = AnyResolution(side, side // patch, resolutions, Image.Resampling.BICUBIC, COLOURS)
    tiles, per_tile = len(tiling.pixels(Image.new("RGB", (size[1], size[0])))), (side // patch) ** 2
    features = torch.arange(tiles * per_tile).reshape(tiles, per_tile, 1)
    model: Any = SimpleNamespace(config=config)
    packed, _ = LlavaNextModel.pack_image_features(
        model, [features], [size], "default", image_newline=torch.tensor([tiles * per_tile])
    )
    return [int(n) for n in packed[0].flatten()]


def index_of(size: Size, side: int, patch: int, resolutions: tuple[Size, ...]) -> list[int]:
    tiling = AnyResolution(side, side // patch, resolutions, Image.Resampling.BICUBIC, COLOURS)
    return [int(n) for n in tiling.feature_index(*size)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [*SHAPES, *ELONGATED], ids=str)
def test_it_gathers_what_the_model_packs(size: Size, settings: tuple[int, int, tuple[Size, ...]]) -> None:
    assert index_of(size, *settings) == packed_by_the_model(size, *settings)


@given(st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_it_gathers_what_the_model_packs_for_any_size(size: Size) -> None:
    assert index_of(size, 336, 14, HUB) == packed_by_the_model(size, 336, 14, HUB)


def test_the_whole_picture_comes_first_and_rows_end_with_the_newline() -> None:
    # Two tiles of 2 x 2 patches, side by side; the newline is feature 12.
    assert index_of((24, 48), *SETTINGS[0]) == [0, 1, 2, 3, 4, 5, 8, 9, 12, 6, 7, 10, 11, 12]
