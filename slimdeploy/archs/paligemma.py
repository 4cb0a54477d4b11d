"""PaliGemma: a SigLIP tower, one linear layer, a Gemma. Pictures and question are a prefix whose tokens see each other
both ways; the answer follows as a suffix.
"""

from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature

from .asking import Ask
from .gemma3 import GEMMA3


def _prompt(question: str, pictures: int) -> str:
    return "<image>" * pictures + question


def _suffixes(processor: Any, ask: Ask) -> list[list[int]]:
    return [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ask.answers]


def _ask(processor: Any, ask: Ask) -> Any:
    """Prefixes from the processor, which ends them with a newline; suffixes have the token type 1."""
    # One by one: asked for several, it wants prompts of one length.
    asked = [processor(text=[text], images=[list(own)]) for text, own in zip(ask.prompts, ask.pictures, strict=True)]
    both = [(one["input_ids"][0], suffix) for one, suffix in zip(asked, _suffixes(processor, ask), strict=True)]
    tokens = {
        "input_ids": [prefix + suffix for prefix, suffix in both],
        "token_type_ids": [[0] * len(prefix) + [1] * len(suffix) for prefix, suffix in both],
    }
    padded = processor.tokenizer.pad(tokens, padding=True, padding_side="left", return_tensors="pt")
    pixels = [torch.as_tensor(picture) for one in asked for picture in one["pixel_values"]]
    return BatchFeature({**padded, "pixel_values": torch.stack(pixels)})


def _answer_lengths(processor: Any, ask: Ask) -> list[int]:
    return [len(suffix) for suffix in _suffixes(processor, ask)]


PALIGEMMA = replace(
    GEMMA3,
    model_type="paligemma",
    fewest=1,
    first_position=1,
    causal_prompt=False,
    prompt=_prompt,
    ask=_ask,
    answer_lengths=_answer_lengths,
)
