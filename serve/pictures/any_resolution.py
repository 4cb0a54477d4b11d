"""LLaVA-NeXT: a picture whole and, at the best of several resolutions, in tiles; rows of features end with a newline.

The vision graph gives the features of all tiles, and which of them the language model reads in which order is data: an
index, made here, so that the graph merely gathers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.images import to_rgb

from .llava import rows_of_image
from .picture import Picture, Pictures
from .pixels import CLIP_MEAN, CLIP_STD, COMMON, Colours, Floats, colours_of, resized, tiles_of
from .settings import Kind, ModelSettings, agreed

Size = tuple[int, int]

_DEFAULTS: dict[str, Any] = COMMON | {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    # Without effect: tiles are cut to the size that a crop would give, and pads fill up a batch of several pictures.
    "do_center_crop": True,
    "do_pad": True,
}
KINDS = {"LlavaNextImageProcessor": Kind(_DEFAULTS, only={"do_resize": True, "aspect_ratio_setting": "anyres"})}


@dataclass(frozen=True)
class AnyResolution:
    """side: of a tile, in pixels. patches: along a tile's side. resolutions: (height, width) in pixels."""

    side: int
    patches: int
    resolutions: Sequence[Size]
    resample: Image.Resampling
    colours: Colours

    def pixels(self, image: Image.Image) -> Floats:
        """(tiles, 3, side, side): the whole picture, then the tiles row by row."""
        image = to_rgb(image)
        height, width = best_resolution(image.height, image.width, self.resolutions)
        inner = fitted(image.height, image.width, height, width)
        canvas = Image.new("RGB", (width, height))
        part = resized(image, inner[1], inner[0], self.resample)
        canvas.paste(part, ((width - inner[1]) // 2, (height - inner[0]) // 2))
        whole = np.asarray(resized(image, self.side, self.side, self.resample))
        tiles = tiles_of(canvas, self.side).reshape(-1, self.side, self.side, 3)
        return self.colours(np.concatenate([whole[None], tiles]))

    def feature_index(self, height: int, width: int) -> NDArray[np.int64]:
        """Of a picture of that size: rows of [features of all tiles, the newline] as the language model reads them."""
        rows, columns = (n // self.side for n in best_resolution(height, width, self.resolutions))
        per_tile = self.patches**2
        whole = np.arange(per_tile)
        tiles = per_tile + np.arange(rows * columns * per_tile)
        grid = tiles.reshape(rows, columns, self.patches, self.patches).swapaxes(1, 2)
        grid = unpadded(grid.reshape(rows * self.patches, columns * self.patches), height, width)
        newline = np.full((len(grid), 1), (rows * columns + 1) * per_tile)
        return np.concatenate([whole, np.hstack([grid, newline]).ravel()]).astype(np.int64)


def best_resolution(height: int, width: int, resolutions: Sequence[Size]) -> Size:
    """The one that keeps the most of a picture's own pixels and, of those, wastes the fewest."""

    def worth(resolution: Size) -> Size:
        scale = min(resolution[1] / width, resolution[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=worth)


def fitted(height: int, width: int, into_height: int, into_width: int) -> Size:
    """The size of a picture that touches the frame on two sides."""
    by_width, by_height = into_width / width, into_height / height
    if by_width < by_height:
        return min(math.ceil(height * by_width), into_height), into_width
    return into_height, min(math.ceil(width * by_height), into_width)


def unpadded(grid: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """Without the rows or columns of patches that hold none of a picture of that size."""
    rows, columns = grid.shape
    if width / height > columns / rows:
        border = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[border : rows - border]
    border = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, border : columns - border]


def load_llava_next(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    side = agreed(
        "the side of a tile",
        settings.says("size", settings.square("size")),
        settings.says("crop_size", settings.square("crop_size")),
        said.vision.says("image_size"),
    )
    key = "image_grid_pinpoints"
    agreed("the list of resolutions", settings.says(key), said.config.says(key))
    resolutions = settings.pairs(key)
    if any(length % side for resolution in resolutions for length in resolution):
        raise settings.error(key, f"tiles of {side} x {side} pixels do not fill them")
    rows = rows_of_image(said, side)
    patches = math.isqrt(rows)
    if patches**2 != rows:
        raise said.config.error(
            "vision_feature_select_strategy", f"{rows} features of a tile make no square, which the model needs"
        )
    marker = said.token("image_token")
    tiling = AnyResolution(side, patches, resolutions, settings.resampling(), colours_of(settings))

    def prepare(image: Image.Image) -> Picture:
        index = tiling.feature_index(image.height, image.width)
        inputs: dict[str, NDArray[Any]] = {"pixel_values": tiling.pixels(image), "feature_index": index}
        return Picture(inputs, marker * len(index), len(index))

    return Pictures(marker, prepare)
