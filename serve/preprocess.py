"""From a decoded picture to a vision encoder's input, driven by the image processor's own JSON; numpy and pillow only.

Covers the CLIP and SigLIP image processors: RGB, resize, centre crop, rescale, normalise. The results equal those of
transformers' PIL processors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.errors import ArtifactError, DataError
from slimdeploy.images import MAX_PIXELS, to_rgb

from .model_files import read_json, read_json_if_there

Pixels = NDArray[np.float32]

_CLIP_DEFAULTS = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP_DEFAULTS = _CLIP_DEFAULTS | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "CLIPImageProcessorFast": _CLIP_DEFAULTS,
    "CLIPFeatureExtractor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "SiglipImageProcessorFast": _SIGLIP_DEFAULTS,
}


@dataclass(frozen=True)
class Preprocessor:
    """shortest_edge: pixels of the shorter side after the resize, or None where `size` is given.

    size and crop: (height, width) in pixels, None to leave the step out. scale and shift: (3, 1, 1), what a pixel of
    0 to 255 is multiplied by and what is then added.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    scale: Pixels
    shift: Pixels

    def __call__(self, images: Iterable[Image.Image]) -> Pixels:
        """pixel_values: (images, 3, height, width). Raises DataError for a picture too elongated to resize.

        Keeps no picture: of an iterator that decodes, one at a time is in memory.
        """
        return np.stack([*map(self._one, images)])  # a variable of a comprehension would hold the picture before

    def _one(self, image: Image.Image) -> Pixels:
        image = to_rgb(image)
        width, height = self._resized(image.width, image.height)
        if width * height > MAX_PIXELS:
            raise DataError(
                f"image of {image.width} x {image.height} pixels is too elongated: resized for this model it would "
                f"have {width} x {height}; crop it"
            )
        if (width, height) != image.size:
            image = image.resize((width, height), self.resample)
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _centre(_centre(pixels, 0, self.crop[0]), 1, self.crop[1])
        return pixels.transpose(2, 0, 1).astype(np.float32) * self.scale + self.shift

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size[1], self.size[0]
        if self.shortest_edge is None:
            return width, height
        # Rounded down, and the product taken before the quotient: as transformers does it.
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        return (self.shortest_edge, long) if width <= height else (long, self.shortest_edge)


def _centre(pixels: NDArray[np.uint8], axis: int, length: int) -> NDArray[np.uint8]:
    """The middle `length` rows or columns; black is added on both sides where there are fewer."""
    missing = length - pixels.shape[axis]
    if missing > 0:
        padding = [(0, 0)] * pixels.ndim
        padding[axis] = (missing - missing // 2, missing // 2)
        return np.pad(pixels, padding)
    start = -missing // 2
    return pixels.take(range(start, start + length), axis) if missing else pixels


def load_preprocessor(folder: Path) -> Preprocessor:
    """From processor_config.json (transformers 5, nested) or preprocessor_config.json (hub repositories).

    Raises ArtifactError for an image processor that this module does not know.
    """
    file = folder / "processor_config.json"
    values = read_json_if_there(file).get("image_processor")
    if values is None:
        file = folder / "preprocessor_config.json"
        values = read_json(file)
    name = values.get("image_processor_type", values.get("feature_extractor_type"))
    if name not in _DEFAULTS:
        raise ArtifactError(f"{file} names the image processor {name!r}; this server knows {', '.join(_DEFAULTS)}")
    settings = _DEFAULTS[name] | {key: value for key, value in values.items() if value is not None}
    try:
        return _from_settings(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file} has image settings that this server does not understand: {error}") from None


def _from_settings(settings: dict[str, Any]) -> Preprocessor:
    if settings.get("do_pad"):
        raise ValueError("do_pad")
    size = settings["size"] if settings["do_resize"] else None
    shortest_edge = size if isinstance(size, int) else None
    exact = None
    if isinstance(size, dict):
        if set(size) == {"shortest_edge"}:
            shortest_edge = int(size["shortest_edge"])
        elif set(size) == {"height", "width"}:
            exact = (int(size["height"]), int(size["width"]))
        else:
            raise ValueError(f"size = {size}")
    crop = settings["crop_size"] if settings["do_center_crop"] else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    # (pixel * rescale - mean) / std, as one multiplication and one addition.
    mean = np.array(settings["image_mean"] if settings["do_normalize"] else [0.0] * 3).reshape(3, 1, 1)
    std = np.array(settings["image_std"] if settings["do_normalize"] else [1.0] * 3).reshape(3, 1, 1)
    rescale = float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0
    return Preprocessor(
        shortest_edge,
        exact,
        Image.Resampling(settings["resample"]),
        (int(crop["height"]), int(crop["width"])) if crop is not None else None,
        (rescale / std).astype(np.float32),
        (-mean / std).astype(np.float32),
    )
