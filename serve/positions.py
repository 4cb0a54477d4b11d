"""Where the tokens of a prompt stand, in one dimension or in three."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from .model_files import ModelFacts
from .pictures import Grid, Picture

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """ids: (tokens,), or (3, tokens) for time, height and width. next: of the token that follows, in each of them."""

    ids: Integers
    next: int


def positions(facts: ModelFacts, ids: Sequence[int], pictures: Sequence[Picture]) -> Positions:
    """Of a whole prompt. pictures: all of it, in order."""
    match facts.family:
        case "llava" | "llava_next" | "idefics3" | "smolvlm" | "gemma3":
            return _in_a_row(len(ids), first=0)
        case "paligemma":
            return _in_a_row(len(ids), first=1)
        case "qwen2_5_vl" | "qwen3_vl":
            return _in_space(np.array(ids) == facts.image_token, [picture.grid for picture in pictures if picture.grid])
        case _:
            assert_never(facts.family)


def token_kinds(facts: ModelFacts, ids: Sequence[int]) -> Integers | None:
    """(tokens,): 1 for those of a prompt that see each other both ways: a picture's in Gemma 3, all in PaliGemma.

    None where the decoder is told none.
    """
    match facts.family:
        case "gemma3":
            return np.array([token == facts.image_token for token in ids], np.int64)
        case "paligemma":
            return np.ones(len(ids), np.int64)
        case _:
            return None


def _in_a_row(tokens: int, first: int) -> Positions:
    return Positions(np.arange(first, first + tokens), first + tokens)


def _in_space(is_picture: NDArray[np.bool_], grids: Sequence[Grid]) -> Positions:
    """M-RoPE (Qwen2-VL, Wang et al. 2024, section 2.1).

    Text counts on in all three dimensions alike. A picture is a box in them, and what follows it stands behind its
    longest side.
    """
    parts, token, following = [], 0, 0
    for grid in grids:
        text = int(np.argmax(is_picture[token:]))
        parts.append(_text(text, following))
        following += text
        parts.append(np.indices(grid).reshape(3, -1) + following)
        following += max(grid)
        token += text + int(np.prod(grid))
    rest = len(is_picture) - token
    parts.append(_text(rest, following))
    return Positions(np.concatenate(parts, axis=1).astype(np.int64), following + rest)


def _text(tokens: int, first: int) -> Integers:
    return np.broadcast_to(np.arange(first, first + tokens), (3, tokens))
