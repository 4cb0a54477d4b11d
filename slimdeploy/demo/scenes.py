"""Pictures of the demo task: coloured shapes, or one handwritten digit, with noise and jitter.

Knows what is in a picture and how to paint it; `questions` asks about it. Everything random comes from the generator
that is passed in, so a picture is a function of its seed.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 48
"""Width and height of a picture in pixels."""

COLORS = {
    "red": (214, 44, 44),
    "green": (46, 170, 60),
    "blue": (48, 84, 222),
    "yellow": (232, 212, 52),
    "purple": (150, 58, 190),
    "cyan": (60, 205, 215),
    "orange": (240, 138, 36),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")

DIGIT_SHARE = 0.2
"""Share of the pictures that show a digit."""

OBJECT_COUNTS = (0.12, 0.26, 0.31, 0.31)
"""How often a scene has one, two, three, four objects."""

EASY_OBJECT_COUNTS = (0.7, 0.3, 0.0, 0.0)
"""The same at the start of training."""

_SUPERSAMPLING = 3
_REPEATED_COLOR = 0.2
_PLACING_ATTEMPTS = 50

Pixels = NDArray[np.uint8]
RGB = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class SceneObject:
    """One shape: its centre and radius in pixels, y pointing down."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Digit:
    """One handwritten digit: the centre and the side of its square in pixels."""

    color: str
    value: int
    x: float
    y: float
    side: int


@dataclass(frozen=True)
class Picture:
    """What is seen and what is true of it. pixels: (SIZE, SIZE, 3)."""

    pixels: Pixels
    content: tuple[SceneObject, ...] | Digit

    def png(self) -> bytes:
        encoded = io.BytesIO()
        Image.fromarray(self.pixels).save(encoded, format="PNG", compress_level=1)
        return encoded.getvalue()


@dataclass(frozen=True)
class DigitScans:
    """Scanned digits. images: (count, 8, 8), ink from 0 to 16. labels: (count,)."""

    images: Pixels
    labels: NDArray[np.uint8]

    def subset(self, which: NDArray[np.intp]) -> "DigitScans":
        return DigitScans(self.images[which], self.labels[which])


@cache
def load_digit_scans() -> DigitScans:
    """The 1,797 digits of the UCI data set that scikit-learn bundles (CC BY 4.0, Alpaydin and Kaynak)."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        return DigitScans(arrays["images"], arrays["labels"])


def make_picture(
    rng: np.random.Generator, scans: DigitScans, object_counts: Sequence[float] = OBJECT_COUNTS
) -> Picture:
    """A scene of one to four objects or, for a share of the pictures, a digit out of `scans`."""
    if rng.random() < DIGIT_SHARE:
        return _digit_picture(rng, scans)
    count = 1 + int(rng.choice(len(object_counts), p=object_counts))
    return _scene_picture(rng, place_objects(rng, count))


def place_objects(rng: np.random.Generator, count: int) -> tuple[SceneObject, ...]:
    """Up to `count` objects that do not touch; fewer where one finds no room."""
    placed: list[SceneObject] = []
    for _ in range(count):
        for _ in range(_PLACING_ATTEMPTS):
            radius = float(rng.uniform(5.5, 8.2))
            x, y = (float(value) for value in rng.uniform(radius + 1, SIZE - radius - 1, 2))
            if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 1 for o in placed):
                color = pick(rng, list(COLORS))
                if placed and rng.random() < _REPEATED_COLOR:
                    color = pick(rng, placed).color
                placed.append(SceneObject(color, pick(rng, SHAPES), x, y, radius))
                break
    return tuple(placed)


def _scene_picture(rng: np.random.Generator, objects: tuple[SceneObject, ...]) -> Picture:
    canvas = Image.new("RGB", (SIZE * _SUPERSAMPLING,) * 2, _background(rng))
    draw = ImageDraw.Draw(canvas)
    for item in objects:
        _draw(draw, item, _jittered(rng, COLORS[item.color]))
    smooth = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32)
    return Picture(_photographed(rng, smooth), objects)


def _digit_picture(rng: np.random.Generator, scans: DigitScans) -> Picture:
    index = int(rng.integers(len(scans.labels)))
    side = int(rng.integers(28, 45))
    left, top = (int(value) for value in rng.integers(0, SIZE - side + 1, 2))
    color = pick(rng, list(COLORS))

    scan = Image.fromarray((scans.images[index] * (255 / 16)).astype(np.uint8))
    ink = np.asarray(scan.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    canvas = np.full((SIZE, SIZE, 3), _background(rng), dtype=np.float32)
    window = canvas[top : top + side, left : left + side]
    window += ink * (np.array(_jittered(rng, COLORS[color]), dtype=np.float32) - window)

    digit = Digit(color, int(scans.labels[index]), left + side / 2, top + side / 2, side)
    return Picture(_photographed(rng, canvas), digit)


def _draw(draw: ImageDraw.ImageDraw, item: SceneObject, fill: RGB) -> None:
    x, y, r = (value * _SUPERSAMPLING for value in (item.x, item.y, item.radius))
    match item.shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "ring":
            draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=int(0.42 * r))
        case "square":
            half = 0.88 * r
            draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        case "triangle":
            draw.polygon([(x, y - r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=fill)
        case "cross":
            half = 0.36 * r
            draw.rectangle((x - half, y - r, x + half, y + r), fill=fill)
            draw.rectangle((x - r, y - half, x + r, y + half), fill=fill)
        case _:
            raise AssertionError(f"no drawing for the shape {item.shape!r}")


def _background(rng: np.random.Generator) -> RGB:
    gray = int(rng.integers(15, 80))
    return _clipped(gray + rng.integers(-10, 11, 3))


def _jittered(rng: np.random.Generator, color: RGB) -> RGB:
    return _clipped(np.array(color) + rng.integers(-22, 23, 3))


def _clipped(values: NDArray[np.int64]) -> RGB:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def _photographed(rng: np.random.Generator, clean: NDArray[np.float32]) -> Pixels:
    """Another exposure, and sensor noise."""
    exposed = clean * rng.uniform(0.85, 1.12)
    noisy = exposed + 6 * rng.standard_normal(clean.shape, dtype=np.float32)
    pixels: Pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return pixels


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
