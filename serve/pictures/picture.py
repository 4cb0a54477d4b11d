"""What a picture is to an engine: arrays for the vision graph, and the text that stands for it in the prompt."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the vision graph.

    inputs: arrays by the graph's input names. placeholder: replaces, in the rendered prompt, the one marker that the
    chat template wrote. tokens: how many image tokens are in it, each for one row that the graph gives, in order.
    grid: (time, height, width) of those tokens where positions count in three dimensions, else None.
    """

    inputs: Mapping[str, NDArray[Any]]
    placeholder: str
    tokens: int
    grid: Grid | None = None


@dataclass(frozen=True)
class Pictures:
    """How one model takes pictures.

    marker: what its chat template writes for a picture. prepare: of one picture in any mode; raises DataError for one
    that the model does not take.
    """

    marker: str
    prepare: Callable[[Image.Image], Picture]

    def prepare_all(self, images: Iterable[Image.Image]) -> list[Picture]:
        """Keeps no image: of an iterator that decodes, one at a time is in memory."""
        return [*map(self.prepare, images)]  # a variable of a comprehension would hold the image before
