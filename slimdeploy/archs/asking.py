"""What a processor is asked to turn into inputs, and how most processors are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image


@dataclass(frozen=True)
class Ask:
    """A batch of questions, by sample.

    prompts: up to where the answer begins. answers: what is appended to them; empty where nothing is.
    pictures: RGB. sounds: waveforms in [-1, 1], at the rate that the processor hears.
    """

    prompts: Sequence[str]
    answers: Sequence[str]
    pictures: Sequence[Sequence[Image]]
    sounds: Sequence[Sequence[NDArray[np.float32]]]

    @property
    def texts(self) -> list[str]:
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def flat_pictures(self) -> list[Image] | None:
        """All pictures in order; None where there is none, as processors want it."""
        return [picture for own in self.pictures for picture in own] or None


def special_tokens(tokenizer: Any, prompts: Sequence[str]) -> dict[str, bool]:
    """A chat template that writes the begin-of-sequence token must not get a second one from the tokenizer."""
    return {"add_special_tokens": not (tokenizer.bos_token and prompts[0].startswith(tokenizer.bos_token))}


def ask_processor(processor: Any, ask: Ask, **more: Any) -> Any:
    """Inputs of the texts with all pictures in one list, padded on the left. more: what else the processor is told."""
    return processor(text=ask.texts, images=ask.flat_pictures, **in_batch(processor, ask), **more)


def ask_with_lists(processor: Any, ask: Ask) -> Any:
    """As `ask_processor`, with a list of pictures for each sample."""
    lists = [list(own) for own in ask.pictures] if ask.flat_pictures else None
    return processor(text=ask.texts, images=lists, **in_batch(processor, ask))


def in_batch(processor: Any, ask: Ask) -> dict[str, Any]:
    """What every processor is told: one tensor for all samples, padded on the left."""
    special = special_tokens(processor.tokenizer, ask.prompts)
    return {"padding": True, "padding_side": "left", "return_tensors": "pt", **special}


def answer_lengths(processor: Any, ask: Ask) -> list[int]:
    """Tokens of each text behind what it shares with its prompt."""
    special = special_tokens(processor.tokenizer, ask.prompts)
    prompts, texts = (processor.tokenizer(list(texts), **special)["input_ids"] for texts in (ask.prompts, ask.texts))
    lengths = []
    for prompt, text in zip(prompts, texts, strict=True):
        shared = next((i for i, pair in enumerate(zip(prompt, text, strict=False)) if pair[0] != pair[1]), len(prompt))
        lengths.append(len(text) - shared)
    return lengths
