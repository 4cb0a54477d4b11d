"""The demo model and its task: a small LLaVA, trained from scratch on generated pictures, that ships with the package.

Importing this needs numpy and pillow only, so that a device without torch can make the test split on the spot.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from ..samples import SPLITS, Sample, Split
from .questions import ask
from .scenes import DigitScans, load_digit_scans, make_picture

__all__ = ["CHECKPOINT", "SPLITS", "Sample", "Split", "samples"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The folder of the trained model, in Hugging Face layout."""

Source = Split | Literal["pretraining"]
"""Where a picture belongs: to one of the splits, or to what the shipped model was trained on."""

_SEEDS: dict[Source, int] = {"pretraining": 1, "train": 2, "calibration": 3, "search": 4, "validation": 5, "test": 6}
_DIGIT_RANGES = {
    "train": (0, 1200),
    "calibration": (1200, 1250),
    "search": (1250, 1300),
    "validation": (1300, 1450),
    "test": (1450, 1797),
}


def samples(split: Split, count: int) -> list[Sample]:
    """The first `count` samples of a split: always the same ones, one question about one picture each."""
    return [_sample(split, index) for index in range(count)]


def picture_rng(source: Source, *index: int) -> np.random.Generator:
    """The generator of everything random about one picture (or batch of pictures) of a source."""
    return np.random.default_rng([_SEEDS[source], *index])


@cache
def digit_scans(source: Source) -> DigitScans:
    """The scans that a source may show. No two splits share one; pretraining shares those of the split "train"."""
    scans = load_digit_scans()
    first, last = _DIGIT_RANGES["train" if source == "pretraining" else source]
    shuffled = np.random.default_rng(0).permutation(len(scans.labels))
    return scans.subset(shuffled[first:last])


def _sample(split: Split, index: int) -> Sample:
    rng = picture_rng(split, index)
    picture = make_picture(rng, digit_scans(split))
    (question,) = ask(picture, rng, count=1)
    return Sample(
        id=f"{split}-{index:05d}",
        question=question.text,
        images=(picture.png(),),
        answers=(question.answer,),
        choices=question.choices,
        kind=question.kind,
    )
