"""Pixels: resized within limits, cropped, and turned into what a vision tower sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.errors import DataError
from slimdeploy.images import MAX_PIXELS

from .settings import Settings

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
# Of every image processor here.
COMMON: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


@dataclass(frozen=True)
class Colours:
    """scale, shift: (3, 1, 1), what a pixel of 0 to 255 is multiplied by and what is then added."""

    scale: Floats
    shift: Floats

    def __call__(self, pixels: Bytes) -> Floats:
        """(..., height, width, 3) to (..., 3, height, width)."""
        values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
        values *= self.scale
        values += self.shift
        return values


def colours_of(settings: Settings) -> Colours:
    """(pixel * rescale_factor - mean) / std, as one multiplication and one addition."""
    mean, std = np.zeros((3, 1, 1)), np.ones((3, 1, 1))
    if settings.is_on("do_normalize"):
        mean, std = settings.channels("image_mean"), settings.channels("image_std")
        if not std.all():
            raise settings.error("image_std", "nothing can be divided by 0")
    factor = settings.factor("rescale_factor") if settings.is_on("do_rescale") else 1.0
    return Colours((factor / std).astype(np.float32), (-mean / std).astype(np.float32))


def resized(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    """Raises DataError before a result that would fill the memory."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"image of {image.width} x {image.height} pixels is too elongated: resized for this model it would "
            f"have {width} x {height}; crop it"
        )
    return image if image.size == (width, height) else image.resize((width, height), resample)


def centre(pixels: Bytes, height: int, width: int) -> Bytes:
    """The middle; black is added on all sides where there is less."""
    return _middle(_middle(pixels, 0, height), 1, width)


def _middle(pixels: Bytes, axis: int, length: int) -> Bytes:
    missing = length - pixels.shape[axis]
    if missing > 0:
        padding = [(0, 0)] * pixels.ndim
        padding[axis] = (missing - missing // 2, missing // 2)
        return np.pad(pixels, padding)
    start = -missing // 2
    return pixels.take(range(start, start + length), axis) if missing else pixels


def tiles_of(image: Image.Image, side: int) -> Bytes:
    """(rows, columns, side, side, 3); height and width of the image are multiples of the side."""
    rows, columns = image.height // side, image.width // side
    return np.asarray(image).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
