"""How often a trained demo model is right on the test split, all in all and by kind of question."""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from ..progress import Progress
from . import Sample, samples
from .questions import KINDS

_BATCH = 100
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Accuracy:
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.share * (1 - self.share) / self.asked)

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} ± {100 * self.standard_error:.1f} %"


@dataclass(frozen=True)
class Scores:
    """exact: the greedy answer equals the right one. likelihood: the right choice is the likeliest of the choices.

    Both by kind of question; "all" is the whole split.
    """

    exact: Mapping[str, Accuracy]
    likelihood: Mapping[str, Accuracy]
    chance: float


def score(checkpoint: Path, questions: int, progress: Progress) -> Scores:
    """Ask the model in `checkpoint` the first `questions` of the test split, as any transformers user would."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    asked = samples("test", questions)
    chunks = [asked[start : start + _BATCH] for start in range(0, questions, _BATCH)]
    exact: list[bool] = []
    likeliest: list[bool] = []
    for chunk in progress.track(chunks, "test split", len(chunks)):
        for sample, (text, choice) in zip(chunk, answer(model, processor, chunk), strict=True):
            exact.append(text == sample.answers[0])
            likeliest.append(choice == sample.answers[0])
    kinds = [sample.kind for sample in asked]
    chance = sum(1 / len(sample.choices) for sample in asked) / questions
    return Scores(_by_kind(kinds, exact), _by_kind(kinds, likeliest), chance)


@torch.no_grad()
def answer(model: LlavaForConditionalGeneration, processor: Any, asked: list[Sample]) -> list[tuple[str, str]]:
    """The greedy answer and the likeliest choice for each sample."""
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}],
            add_generation_prompt=True,
        )
        for sample in asked
    ]
    pictures = [Image.open(io.BytesIO(source)) for sample in asked for source in sample.images if type(source) is bytes]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=_NEW_TOKENS, output_logits=True, return_dict_in_generate=True
    )
    written = out.sequences[:, inputs["input_ids"].shape[1] :]
    greedy = processor.batch_decode(written, skip_special_tokens=True)
    return [
        (text.strip(), _likeliest(logits, sample.choices, processor.tokenizer))
        for text, logits, sample in zip(greedy, out.logits[0], asked, strict=True)
    ]


def _likeliest(logits: torch.Tensor, choices: tuple[str, ...], tokenizer: Any) -> str:
    """Every answer of the task is one token, so the logits of the first new token rank the choices."""
    tokens = [tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in choices]
    assert all(len(ids) == 1 for ids in tokens)
    return choices[int(logits[[ids[0] for ids in tokens]].argmax())]


def _by_kind(kinds: Iterable[str], right: list[bool]) -> dict[str, Accuracy]:
    results = list(zip(kinds, right, strict=True))
    by_kind = {}
    for kind in KINDS:
        of_kind = [is_right for asked, is_right in results if asked == kind]
        if of_kind:
            by_kind[kind] = Accuracy(sum(of_kind), len(of_kind))
    return by_kind | {"all": Accuracy(sum(right), len(right))}
