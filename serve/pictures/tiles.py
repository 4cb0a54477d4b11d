"""Idefics3 and SmolVLM: a picture in rows and columns of tiles, each announced by its place, and once more whole."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from slimdeploy.images import to_rgb

from .picture import Picture, Pictures
from .pixels import COMMON, HALF, Colours, Floats, colours_of, resized, tiles_of
from .settings import Kind, ModelSettings, agreed

_MOST_PIXELS = 4096  # along a side; beyond it transformers shrinks once more, and no model has been made so
_DEFAULTS: dict[str, Any] = COMMON | {
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "resample": 1,
    "image_mean": HALF,
    "image_std": HALF,
    "do_image_splitting": True,
    "do_pad": True,  # without effect: tiles have one size, and pads fill up a batch of several pictures
}
_KIND = Kind(_DEFAULTS, only={"do_resize": True})
KINDS = {"Idefics3ImageProcessor": _KIND, "SmolVLMImageProcessor": _KIND}


@dataclass(frozen=True)
class Tiling:
    """longest: pixels of a picture's longer side before it is cut. side: of a tile. splits: False leaves it in one."""

    longest: int
    side: int
    splits: bool
    resample: Image.Resampling
    colours: Colours

    def __call__(self, image: Image.Image) -> tuple[Floats, int, int]:
        """Pixels (1, tiles, 3, side, side), the whole picture last; rows and columns, 0 where it is alone."""
        side, image = self.side, to_rgb(image)
        image = resized(image, *scaled(image.width, image.height, self.longest), self.resample)
        if self.splits:
            image = resized(image, *filled(image.width, image.height, side), self.resample)
        whole = np.asarray(resized(image, side, side, self.resample))[None]
        rows, columns = image.height // side, image.width // side
        if not self.splits or rows * columns == 1:
            return self.colours(whole)[None], 0, 0
        tiles = tiles_of(image, side).reshape(-1, side, side, 3)
        return self.colours(np.concatenate([tiles, whole]))[None], rows, columns


def scaled(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) with that longer side and an even shorter one. Rounds as transformers does."""
    ratio = width / height
    if width >= height:
        return longest, max(_even(int(longest / ratio)), 1)
    return max(_even(int(longest * ratio)), 1), longest


def filled(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of whole tiles; the shorter side follows from the longer one. Rounds as transformers does."""
    ratio = width / height
    if width >= height:
        width = _whole(width, side)
        return width, _whole(int(width / ratio), side)
    height = _whole(height, side)
    return _whole(int(height * ratio), side), height


def _even(length: int) -> int:
    return length + length % 2


def _whole(length: int, side: int) -> int:
    return math.ceil(length / side) * side


@dataclass(frozen=True)
class TileText:
    """tokens: of one tile. The others are control tokens."""

    tokens: int
    image: str
    around: str
    whole: str

    def __call__(self, rows: int, columns: int) -> str:
        features = self.image * self.tokens
        lines = [
            "".join(f"{self.around}<row_{row}_col_{column}>{features}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        ]
        before = "".join(f"{line}\n" for line in lines) + "\n" if lines else ""
        return f"{before}{self.around}{self.whole}{features}{self.around}"


def load_idefics3(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    longest, side = settings.edge("size", "longest_edge"), settings.edge("max_image_size", "longest_edge")
    if longest > _MOST_PIXELS:
        raise settings.error("size", f"this server knows a longest_edge of {_MOST_PIXELS} at most")
    agreed("the side of a tile", settings.says("max_image_size", side), said.vision.says("image_size"))
    splits = settings.is_on("do_image_splitting")
    tiling = Tiling(longest, side, splits, settings.resampling(), colours_of(settings))
    text = _tile_text(said, side)

    def prepare(image: Image.Image) -> Picture:
        pixels, rows, columns = tiling(image)
        return Picture({"pixel_values": pixels}, text(rows, columns), text.tokens * (rows * columns + 1))

    return Pictures(text.image, prepare)


def _tile_text(said: ModelSettings, side: int) -> TileText:
    processor = said.processor_settings("image_seq_len")
    # The connector folds squares of patches, scale_factor along a side, into one token.
    patches = side // said.vision.number("patch_size")
    by_tower = patches**2 // said.config.number("scale_factor") ** 2
    tokens = agreed(
        "how many tokens a tile has", said.config.says("scale_factor", by_tower), processor.says("image_seq_len")
    )
    named = said.text.special_tokens
    return TileText(
        tokens,
        said.token("image_token"),
        named.get("fake_image_token", "<fake_token_around_image>"),
        named.get("global_image_token", "<global-img>"),
    )
