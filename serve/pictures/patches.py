"""Qwen2.5-VL and Qwen3-VL: a picture near its own size, as patches; neighbours of them become one token."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.errors import DataError
from slimdeploy.images import to_rgb

from .picture import Picture, Pictures
from .pixels import CLIP_MEAN, CLIP_STD, COMMON, Colours, Floats, colours_of, resized, tiles_of
from .settings import Kind, ModelSettings, Settings, agreed

_MOST_ELONGATED = 200  # transformers refuses beyond
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_DEFAULTS: dict[str, Any] = COMMON | {
    "size": _PIXELS,
    "min_pixels": None,
    "max_pixels": None,
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
KINDS = {"Qwen2VLImageProcessor": Kind(_DEFAULTS, only={"do_resize": True})}


@dataclass(frozen=True)
class Patches:
    """patch: pixels along its side. merge: patches along the side of a token. frames: in which a still is repeated.

    fewest, most: pixels of a whole picture.
    """

    patch: int
    merge: int
    frames: int
    fewest: int
    most: int
    resample: Image.Resampling
    colours: Colours

    def __call__(self, image: Image.Image) -> tuple[Floats, int, int]:
        """(patches, 3 * frames * patch * patch), the patches of one token side by side; rows and columns of patches."""
        image = to_rgb(image)
        image = resized(image, *self.sized(image.width, image.height), self.resample)
        rows, columns = image.height // self.patch, image.width // self.patch
        tokens = tiles_of(image, self.patch * self.merge)
        split = tokens.reshape(*tokens.shape[:2], self.merge, self.patch, self.merge, self.patch, 3).swapaxes(3, 4)
        patches = self.colours(split.reshape(-1, self.patch, self.patch, 3))
        return np.repeat(patches[:, :, None], self.frames, axis=2).reshape(len(patches), -1), rows, columns

    def sized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of whole tokens, near the picture's own or within the limits. Rounds as transformers does."""
        if max(width, height) / min(width, height) > _MOST_ELONGATED:
            raise DataError(
                f"image of {width} x {height} pixels is too elongated: this model takes a longer side of at most "
                f"{_MOST_ELONGATED} times the shorter one; crop it"
            )
        unit = self.patch * self.merge
        across, down = (round(length / unit) * unit for length in (width, height))
        if across * down > self.most:
            shrink = math.sqrt(width * height / self.most)
            across, down = (max(unit, math.floor(length / shrink / unit) * unit) for length in (width, height))
        elif across * down < self.fewest:
            grow = math.sqrt(self.fewest / (width * height))
            across, down = (math.ceil(length * grow / unit) * unit for length in (width, height))
        return across, down


def load_qwen(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    said.processor_settings()
    patches = _patches(said, settings)
    marker = said.token("image_token")

    def prepare(image: Image.Image) -> Picture:
        pixels, rows, columns = patches(image)
        grid = (1, rows // patches.merge, columns // patches.merge)
        inputs: dict[str, NDArray[Any]] = {
            "pixel_values": pixels,
            "image_grid_thw": np.array([[1, rows, columns]], np.int64),
        }
        return Picture(inputs, marker * math.prod(grid), math.prod(grid), grid)

    return Pictures(marker, prepare)


def _patches(said: ModelSettings, settings: Settings) -> Patches:
    vision = said.vision

    def as_the_tower(key: str, name: str) -> int:
        agreed(name, settings.says(key), vision.says(name))
        return settings.number(key)

    limits = settings.sides("size")
    if set(limits) != set(_PIXELS):
        raise settings.error("size", "this server knows it with shortest_edge and longest_edge, which count pixels")
    return Patches(
        as_the_tower("patch_size", "patch_size"),
        as_the_tower("merge_size", "spatial_merge_size"),
        as_the_tower("temporal_patch_size", "temporal_patch_size"),
        settings.number_if_there("min_pixels") or limits["shortest_edge"],
        settings.number_if_there("max_pixels") or limits["longest_edge"],
        settings.resampling(),
        colours_of(settings),
    )
