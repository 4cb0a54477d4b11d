"""What the demo model is taught, in three stages, and the batches of each.

A batch is a function of the seed, the stage and the step, so an interrupted training goes on with the batches that it
would have seen. Pictures are made on the spot and never repeat.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaProcessor

from . import digit_scans, picture_rng
from .attention import Layout
from .model import ASSISTANT, GRID, IMAGE_TOKEN, IMAGE_TOKENS, PATCH, USER
from .questions import LIST_REQUEST, Kind, ask, list_objects
from .scenes import COLORS, EASY_OBJECT_COUNTS, OBJECT_COUNTS, SHAPES, Digit, Picture, make_picture

StageName = Literal["vision", "language", "joint"]


@dataclass(frozen=True)
class Stage:
    """vision: the vision tower alone, taught what each patch shows and where. language: the language model, on frozen
    features. joint: both.

    lr: of both optimizers, at its highest. hold: share of the steps before it falls, linearly, to final_lr of it.
    easy: share of the steps with pictures of one or two objects.
    """

    name: StageName
    steps: int
    batch: int
    lr: float
    hold: float
    final_lr: float
    easy: float = 0.0
    warmup: int = 40

    def lr_scale(self, step: int) -> float:
        done = step / self.steps
        falling = 1.0 if done < self.hold else 1 - (1 - self.final_lr) * (done - self.hold) / (1 - self.hold)
        return min(1.0, (step + 1) / self.warmup) * falling


RECIPE = (
    Stage("vision", steps=1500, batch=64, lr=2e-3, hold=0.5, final_lr=0.03, warmup=20),
    Stage("language", steps=4000, batch=8, lr=2e-3, hold=0.8, final_lr=0.5, easy=0.05),
    Stage("joint", steps=2500, batch=8, lr=6e-4, hold=0.0, final_lr=0.02),
)
SMOKE_RECIPE = (
    Stage("vision", steps=3, batch=4, lr=2e-3, hold=0.5, final_lr=0.03, warmup=2),
    Stage("language", steps=3, batch=2, lr=2e-3, hold=0.8, final_lr=0.5, easy=0.5, warmup=2),
    Stage("joint", steps=3, batch=2, lr=1.5e-3, hold=0.4, final_lr=0.02, warmup=2),
)

PATCH_COLORS = 1 + len(COLORS)
PATCH_SHAPES = 1 + len(SHAPES) + 10
"""Classes of a patch; 0 is the background. The ten digits count as shapes."""

QUESTION_WEIGHTS: Mapping[Kind, float] = {
    "color": 1.0,
    "shape": 1.0,
    "digit": 1.0,
    "count": 2.0,
    "position": 2.0,
    "relation": 2.5,
    "existence": 2.0,
}
"""How often each kind is asked in training: the harder, the oftener."""

SEGMENTS = 6
SEGMENT_TOKENS = 24
_QUESTIONS_AT_HAND = 2 * SEGMENTS
_IGNORED = -100


@dataclass(frozen=True)
class VisionBatch:
    """pixels: (batch, 3, height, width).  colors, shapes: (batch, patches)."""

    pixels: Tensor
    colors: Tensor
    shapes: Tensor


@dataclass(frozen=True)
class LanguageBatch:
    """Conversations about each picture.

    pixels: (batch, 3, height, width).  ids: (batch, length).
    predicting: (n,), the places, counted over the flattened ids, whose next token is part of an answer.
    answers: (n,), those next tokens.
    """

    pixels: Tensor
    ids: Tensor
    predicting: Tensor
    answers: Tensor


class BatchMaker:
    """Makes the batches of every stage, in the form that a processor's model reads."""

    def __init__(self, processor: LlavaProcessor, seed: int) -> None:
        self.seed = seed
        self.tokenizer = processor.tokenizer
        self.mean = np.array(processor.image_processor.image_mean, dtype=np.float32)
        self.std = np.array(processor.image_processor.image_std, dtype=np.float32)
        self.prefix = self.encode(f"{self.tokenizer.bos_token}{USER} {IMAGE_TOKEN * IMAGE_TOKENS}\n")
        self.layout = Layout(len(self.prefix), SEGMENTS, SEGMENT_TOKENS)
        self.first_image_token = self.prefix.index(self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.encode = cache(self.encode)  # type: ignore[method-assign]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def vision(self, stage: Stage, step: int) -> VisionBatch:
        rng = picture_rng("pretraining", self.seed, 0, step)
        pictures = [make_picture(rng, digit_scans("pretraining")) for _ in range(stage.batch)]
        labels = np.stack([patch_labels(picture) for picture in pictures])
        colors, shapes = torch.from_numpy(labels).unbind(dim=1)
        return VisionBatch(self.normalized(pictures), colors, shapes)

    def language(self, stage: Stage, step: int) -> LanguageBatch:
        rng = picture_rng("pretraining", self.seed, 1 if stage.name == "language" else 2, step)
        counts = EASY_OBJECT_COUNTS if step < stage.easy * stage.steps else OBJECT_COUNTS
        pictures = [make_picture(rng, digit_scans("pretraining"), counts) for _ in range(stage.batch)]
        ids = np.full((stage.batch, self.layout.length), self.tokenizer.pad_token_id)
        targets = np.full_like(ids, _IGNORED)
        ids[:, : self.layout.prefix] = self.prefix
        for row, picture in enumerate(pictures):
            for number, conversation in enumerate(self.conversations(picture, rng)):
                start = self.layout.prefix + number * self.layout.segment
                for question, answer in conversation:
                    middle, end = start + len(question), start + len(question) + len(answer)
                    ids[row, start:end] = question + answer
                    targets[row, middle - 1 : end - 1] = answer
                    start = end
        # A target stands at the place before its token. Each conversation starts with a question, so none crosses over.
        flat = torch.from_numpy(targets).flatten()
        predicting = (flat != _IGNORED).nonzero()[:, 0]
        return LanguageBatch(self.normalized(pictures), torch.from_numpy(ids), predicting, flat[predicting])

    def conversations(self, picture: Picture, rng: np.random.Generator) -> list[list[tuple[list[int], list[int]]]]:
        """Token ids of (question, answer) turns, each conversation short enough for one segment.

        The first asks for a list of all objects, the others hold as many questions as there is room for.
        """
        turns = [[self.turn(LIST_REQUEST, list_objects(picture), first=True)]]
        questions = iter(ask(picture, rng, _QUESTIONS_AT_HAND, QUESTION_WEIGHTS))
        question = next(questions)
        for _ in range(1, self.layout.segments):
            conversation: list[tuple[list[int], list[int]]] = []
            room = self.layout.segment
            while True:
                turn = self.turn(question.text, question.answer, first=not conversation)
                room -= len(turn[0]) + len(turn[1])
                if room < 0:
                    break
                conversation.append(turn)
                question = next(questions)
            turns.append(conversation)
        return turns

    def turn(self, question: str, answer: str, *, first: bool) -> tuple[list[int], list[int]]:
        asked = self.encode((question if first else f"{USER} {question}") + ASSISTANT)
        return asked, [*self.encode(f" {answer}"), self.tokenizer.eos_token_id]

    def normalized(self, pictures: list[Picture]) -> Tensor:
        """(batch, 3, height, width), equal to what the processor makes of the same pictures."""
        pixels = np.stack([picture.pixels for picture in pictures]).astype(np.float32) / 255
        return torch.from_numpy((pixels - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()


def patch_labels(picture: Picture) -> NDArray[np.int64]:
    """(2, patches): the colour and the shape of what each patch shows."""
    labels = np.zeros((2, GRID, GRID), dtype=np.int64)
    centre = PATCH * (np.arange(GRID) + 0.5)
    if isinstance(picture.content, Digit):
        digit = picture.content
        # A digit is narrower than its square.
        near = (abs(centre - digit.y)[:, None] < 0.5 * digit.side) & (abs(centre - digit.x) < 0.4 * digit.side)
        labels[:, near] = [[1 + list(COLORS).index(digit.color)], [1 + len(SHAPES) + digit.value]]
        return labels.reshape(2, -1)
    nearest = np.full((GRID, GRID), np.inf)
    for item in picture.content:
        distance = np.maximum(abs(centre - item.y)[:, None], abs(centre - item.x))
        near = (distance < 0.75 * item.radius + PATCH / 2) & (distance < nearest)
        nearest[near] = distance[near]
        labels[:, near] = [[1 + list(COLORS).index(item.color)], [1 + SHAPES.index(item.shape)]]
    return labels.reshape(2, -1)


class _Steps(Dataset[Any]):
    def __init__(self, make: Callable[[Stage, int], Any], stage: Stage, first: int) -> None:
        self.make, self.stage, self.first = make, stage, first

    def __len__(self) -> int:
        return self.stage.steps - self.first

    def __getitem__(self, index: int) -> Any:
        return self.make(self.stage, self.first + index)


def batches(make: Callable[[Stage, int], Any], stage: Stage, first: int, workers: int) -> DataLoader[Any]:
    """The batches of a stage from step `first` on, made ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        _Steps(make, stage, first), batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None
    )
