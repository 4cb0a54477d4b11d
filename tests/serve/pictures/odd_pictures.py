"""Pictures as they come from outside, as bytes: odd shapes, odd modes, odd files."""

import io
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Colours that change slowly, with noise: a resize that is a pixel off shows, and so does one that rounds."""
    rng = np.random.default_rng(width * 10_007 + height)
    slow = np.add.outer(np.arange(height), np.arange(width) * 2)[..., None] * np.array([1, 2, 3, 5]) // 4
    values = (slow + rng.integers(0, 96, (height, width, 4))) % 256
    return Image.fromarray(values.astype(np.uint8), "RGBA").convert(mode)


def encoded(image: Image.Image, format_: str = "PNG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **settings)
    return stream.getvalue()


def _palette(transparent: bool) -> bytes:
    image = noise(50, 41).quantize(16)
    return encoded(image, transparency=3) if transparent else encoded(image)


def _grey_of_16_bits() -> bytes:
    return encoded(Image.fromarray((np.arange(60 * 40).reshape(40, 60) * 27).astype(np.uint16)))


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(60, 33), "JPEG", quality=95, exif=exif)


def _animated() -> bytes:
    return encoded(noise(40, 30).quantize(32), "GIF", save_all=True, append_images=[Image.new("P", (40, 30))])


MODES = {
    "palette": _palette(transparent=False),
    "palette with transparency": _palette(transparent=True),
    "alpha": encoded(noise(50, 41, "RGBA")),
    "grey": encoded(noise(50, 41, "L")),
    "grey with alpha": encoded(noise(50, 41, "LA")),
    "black and white": encoded(noise(50, 41, "1")),
    "16-bit grey": _grey_of_16_bits(),
    "CMYK": encoded(noise(50, 41, "CMYK"), "JPEG", quality=95),
    "rotated by EXIF": _rotated(),
    "animated": _animated(),
}
# For tiles of 24 pixels and patches of 4.
SHAPES = ((1, 1), (2, 3), (1, 190), (24, 24), (25, 23), (48, 48), (47, 96), (97, 48), (33, 300), (301, 20), (640, 480))
ELONGATED = ((1, 4000), (4000, 1))
# For tiles of 336 to 512 pixels.
REAL_SHAPES = ((1, 1), (336, 336), (640, 480), (480, 900), (1300, 300), (200, 1500))
