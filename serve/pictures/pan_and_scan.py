"""Gemma 3: a picture as one square and, where pan and scan is on and it is elongated, once more in crops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from slimdeploy.images import to_rgb

from .picture import Picture, Pictures
from .pixels import COMMON, HALF
from .settings import Kind, ModelSettings, agreed
from .whole import fit_of, side_of

Box = tuple[int, int, int, int]

_DEFAULTS: dict[str, Any] = COMMON | {
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "resample": 2,
    "image_mean": HALF,
    "image_std": HALF,
    "do_pan_and_scan": False,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
KINDS = {
    "Gemma3ImageProcessor": Kind(_DEFAULTS, only={"do_resize": True, "do_center_crop": False, "do_pad": False}),
}


@dataclass(frozen=True)
class PanAndScan:
    """smallest: side of a crop in pixels. most: crops. from_ratio: of the longer to the shorter side."""

    smallest: int
    most: int
    from_ratio: float

    def boxes(self, width: int, height: int) -> Iterator[Box]:
        """(left, upper, right, lower) of the crops, along the longer side; none where the whole picture does."""
        long, short = max(width, height), min(width, height)
        if long / short < self.from_ratio:
            return
        count = min(math.floor(long / self.smallest), math.floor(long / short + 0.5))
        step = math.ceil(long / min(self.most, max(2, count)))
        if min(step, short) < self.smallest:
            return
        for start in range(0, long, step):
            end = min(start + step, long)
            yield (start, 0, end, height) if width >= height else (0, start, width, end)


def load_gemma3(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    fit = fit_of(settings)
    side_of(fit, said, settings)
    scan = PanAndScan(
        settings.number("pan_and_scan_min_crop_size"),
        settings.number("pan_and_scan_max_num_crops"),
        settings.factor("pan_and_scan_min_ratio_to_activate"),
    )
    pans = settings.is_on("do_pan_and_scan")
    processor, key = said.processor_settings("image_seq_length"), "image_seq_length"
    agreed(
        "how many tokens a picture has",
        said.config.says("mm_tokens_per_image"),
        processor.says(key),
        settings.says(key),
    )
    tokens = said.config.number("mm_tokens_per_image")
    marker = said.token("boi_token")
    square = f"\n\n{marker}{said.token('image_token') * tokens}{said.token('eoi_token')}\n\n"

    def prepare(image: Image.Image) -> Picture:
        image = to_rgb(image)
        boxes = [*scan.boxes(image.width, image.height)] if pans else []
        pixels = np.concatenate([fit(image), *(fit(image.crop(box)) for box in boxes)])
        return Picture({"pixel_values": pixels}, _announced(square, len(boxes)), tokens * len(pixels))

    return Pictures(marker, prepare)


def _announced(square: str, crops: int) -> str:
    """The model was trained on these words."""
    if not crops:
        return square
    crops_text = " ".join([square] * crops)
    return f"Here is the original image {square} and here are some crops to help you see better {crops_text}"
