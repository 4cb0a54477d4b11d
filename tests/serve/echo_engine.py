"""A small real engine without a model: it answers with the last message's text, a word per token.

It claims to have had all words but the last from the cache.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

from PIL import Image

from slimdeploy.errors import ServeError
from slimdeploy.serve.engine import (
    Chunk,
    EncodedImage,
    FinishReason,
    GenerationRequest,
    Grammar,
    Message,
    Prompt,
    RequestError,
    Sampling,
    TokenIds,
    TokenLogprob,
    Usage,
)

TOO_LONG = "too long"


class EchoEngine:
    """seconds_per_token: how long each word takes. running and ended count requests, to see that slots are freed."""

    def __init__(self, seconds_per_token: float = 0.0) -> None:
        self.model = "echo"
        self.seconds_per_token = seconds_per_token
        self.running = 0
        self._closed = False
        self.forget()

    def forget(self) -> None:
        """What was asked by now."""
        self.ended = 0
        self.requests: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        text = _said(request.prompt)
        self._require_open()
        if text == TOO_LONG:
            raise RequestError("the prompt is too long", param="messages", code="context_length_exceeded")
        if text == "close":
            raise ServeError("the server is shutting down")
        if text == "break at once":
            raise OSError("/secret/path")
        self.running += 1
        try:
            async for chunk in self._words(text, request.sampling):
                yield chunk
        finally:
            self.running -= 1
            self.ended += 1

    async def _words(self, text: str, sampling: Sampling) -> AsyncGenerator[Chunk, None]:
        words = text.split(" ")
        for number, word in enumerate(words, start=1):
            await asyncio.sleep(self.seconds_per_token)
            self._require_open()
            if word == "break":
                raise OSError("/secret/path")
            finish: FinishReason | None = None
            if number == len(words):
                finish = "stop"
            elif number == sampling.max_tokens:
                finish = "length"
            word = word if number == 1 else f" {word}"
            logprobs = None if sampling.logprobs is None else (_logprob(word, sampling.logprobs),)
            yield Chunk(word, Usage(len(words), number, len(words) - 1), finish, logprobs)
            if finish:
                return

    async def check_grammar(self, grammar: Grammar) -> None:
        """It honours none, and refuses one alone."""
        if grammar.source == "refused":
            raise RequestError(f"'{grammar.param}' is refused", param=grammar.param)

    context = 100
    kv_usage = 0.25

    async def tokenize(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """A word's length for the word; 0 for a picture."""
        if isinstance(prompt, str):
            return [len(word) for word in prompt.split()]
        parts = [part for message in prompt for part in message.parts]
        return [number for part in parts for number in (await self.tokenize(part) if isinstance(part, str) else [0])]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return " ".join(map(_word, tokens))

    async def close(self) -> None:
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise ServeError("the server is shutting down")


def _said(prompt: Prompt) -> str:
    match prompt:
        case str():
            return prompt
        case TokenIds():
            return " ".join(map(_word, prompt.ids))
        case _:
            return " ".join(part if isinstance(part, str) else _size(part) for part in prompt[-1].parts)


def _word(token: int) -> str:
    """As long as the token's number, of which the last two digits count."""
    return "x" * (token % 100)


def _logprob(word: str, alternatives: int) -> TokenLogprob:
    """The word as sure, and control tokens that are impossible beside it."""
    others = [TokenLogprob(f"<{number}>", None, -math.inf) for number in range(1, alternatives)]
    sure = TokenLogprob(word, word.encode(), 0.0)
    return TokenLogprob(word, word.encode(), 0.0, (sure, *others)[:alternatives])


def _size(picture: EncodedImage | Image.Image) -> str:
    image = picture if isinstance(picture, Image.Image) else picture.decode()
    return f"[{image.width}x{image.height}]"
