"""Questions with one right answer each, asked again and again: load must not change what a model says."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soak_answers import events_of
from soak_requests import Ask, picture
from soak_wire import Response

_TOKENS = 24
TIE = 0.02
"""Two log probabilities that differ by less may change places: sums in another order round otherwise, and packed
integer weights round activations to eight bits after that."""


@dataclass(frozen=True)
class Chosen:
    """A token of an answer. lead: of its log probability over that of the next likely one."""

    token: str
    lead: float


def probes() -> list[Ask]:
    """Greedy, each whole and streamed."""
    rng = random.Random(6)
    settings = {"model": "tiny", "temperature": 0, "ignore_eos": True}
    found = []
    for words, pictures in (("What is it?", 0), ("How many are there, and why?", 1), ("Which?", 2), ("w" * 120, 0)):
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture(rng)}} for _ in range(pictures)
        ]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]
        chat = {"messages": messages, "max_tokens": _TOKENS, "logprobs": True, "top_logprobs": 2}
        for stream in (False, True):
            found.append(Ask("chat", json.dumps(settings | chat | {"stream": stream}).encode(), stream))
    return found


def tokens_of(ask: Ask, response: Response) -> list[Chosen]:
    bodies = [e for e in events_of(response.body) if e != "[DONE]"] if ask.stream else [json.loads(response.body)]
    told = [choice["logprobs"] for body in bodies for choice in body["choices"] if choice["logprobs"]]
    tokens = [token for each in told for token in each["content"]]
    leads = [[top["logprob"] for top in token["top_logprobs"]] for token in tokens]
    return [Chosen(str(token["bytes"]), first - second) for token, (first, second) in zip(tokens, leads, strict=True)]


def lead_where_they_part(alone: Sequence[Chosen], loaded: Sequence[Chosen]) -> float | None:
    """Of the first token that differs, when its question was asked alone; None where none does."""
    for one, other in zip(alone, loaded, strict=False):
        if one.token != other.token:
            return one.lead
    assert len(alone) == len(loaded)
    return None
