"""What answers of several endpoints have in common: usage, and log probabilities as chat completions tell them."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal, Self

from pydantic import BaseModel

from ..engine import Chunk, TokenLogprob, Usage

ServiceTier = Literal["default"]
"""Of all answers: there is one service for all."""


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        )


class LikelyToken(BaseModel):
    """bytes: null for a control token, which gives the answer no text."""

    token: str
    logprob: float
    bytes: list[int] | None

    @classmethod
    def of(cls, token: TokenLogprob) -> Self:
        data = None if token.data is None else list(token.data)
        return cls(token=token.text, logprob=finite(token.logprob), bytes=data)


class ChosenToken(LikelyToken):
    top_logprobs: list[LikelyToken]

    @classmethod
    def of(cls, token: TokenLogprob) -> Self:
        return cls(**vars(LikelyToken.of(token)), top_logprobs=[*map(LikelyToken.of, token.alternatives)])


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI has this number for what is as good as impossible."""
    return max(logprob, -9999.0)


def chosen_tokens(chunks: Iterable[Chunk]) -> list[ChosenToken] | None:
    """None where log probabilities were not asked for."""
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    return [*map(ChosenToken.of, chain.from_iterable(told))] if told else None


def usage_of(last: Sequence[Chunk], count: int) -> Usage:
    """Of a request, whose prompts count once each. last: the last chunk of each answer, `count` to a prompt."""
    prompts = [last[start : start + count] for start in range(0, len(last), count)]
    return Usage(
        sum(chunks[0].usage.prompt_tokens for chunks in prompts),
        sum(chunk.usage.completion_tokens for chunk in last),
        sum(min(chunk.usage.cached_tokens for chunk in chunks) for chunks in prompts),
    )
