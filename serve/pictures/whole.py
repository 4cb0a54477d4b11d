"""A picture as one image of one size: CLIP's and SigLIP's image processors, and PaliGemma, which needs no more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from slimdeploy.images import to_rgb

from .picture import Picture, Pictures
from .pixels import CLIP_MEAN, CLIP_STD, COMMON, HALF, Colours, Floats, centre, colours_of, resized
from .settings import Kind, ModelSettings, Settings, agreed

_CLIP: dict[str, Any] = COMMON | {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_SIGLIP = _CLIP | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": HALF,
    "image_std": HALF,
}
KINDS = {
    "CLIPImageProcessor": Kind(_CLIP, only={"do_pad": False}),
    "SiglipImageProcessor": Kind(_SIGLIP, only={"do_pad": False}),
}


@dataclass(frozen=True)
class Fit:
    """Makes every picture one image.

    shortest_edge: pixels of the shorter side after the resize, or None where `size` is given. size and crop: (height,
    width) in pixels, None to leave the step out.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    colours: Colours

    def __call__(self, image: Image.Image) -> Floats:
        """(1, 3, height, width)."""
        image = to_rgb(image)
        pixels = np.asarray(resized(image, *self._resized(image.width, image.height), self.resample))
        return self.colours(pixels if self.crop is None else centre(pixels, *self.crop))[None]

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every result; None where it depends on the picture."""
        return self.crop or self.size

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.size is not None:
            return self.size[1], self.size[0]
        if self.shortest_edge is None:
            return width, height
        # Rounded down, and the product taken before the quotient: as transformers does it.
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        return (self.shortest_edge, long) if width <= height else (long, self.shortest_edge)


def fit_of(settings: Settings) -> Fit:
    shortest_edge, size, crop = None, None, None
    if settings.is_on("do_resize"):
        sides = settings.sides("size")
        if set(sides) == {"shortest_edge"}:
            shortest_edge = sides["shortest_edge"]
        elif set(sides) == {"height", "width"}:
            size = (sides["height"], sides["width"])
        else:
            raise settings.error("size", "this server knows it with shortest_edge, or with height and width")
    if settings.is_on("do_center_crop"):
        sides = settings.sides("crop_size")
        if set(sides) != {"height", "width"}:
            raise settings.error("crop_size", "this server knows it with height and width")
        crop = (sides["height"], sides["width"])
    return Fit(shortest_edge, size, settings.resampling(), crop, colours_of(settings))


def side_of(fit: Fit, said: ModelSettings, settings: Settings) -> int:
    """Of the square that every picture becomes, which must be the one that the vision tower takes."""
    key = "crop_size" if fit.crop else "size"
    if fit.shape is None or fit.shape[0] != fit.shape[1]:
        raise settings.error(key, "the vision tower takes squares of one size, and this makes others")
    agreed("the side of an image", settings.says(key, fit.shape[0]), said.vision.says("image_size"))
    return fit.shape[0]


def load_paligemma(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    said.processor_settings()
    fit = fit_of(settings)
    by_tower = (side_of(fit, said, settings) // said.vision.number("patch_size")) ** 2
    tokens = agreed(
        "how many tokens a picture has",
        said.vision.says("patch_size", by_tower),
        settings.says("image_seq_length"),
    )
    marker = said.token("image_token")
    return Pictures(marker, lambda image: Picture({"pixel_values": fit(image)}, marker * tokens, tokens))
