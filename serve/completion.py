"""One chat completion: an engine's chunks, of one answer or several, as a whole or as server-sent events."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .engine import Chunk, Usage
from .protocol import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    TokenUsage,
    error_body,
)

Chunks = AsyncGenerator[Chunk, None]
Choices = AsyncGenerator[tuple[int, Chunk], None]
"""Chunks of one answer or of several to one request, each with the answer's number."""
INTERNAL_ERROR = "the server failed; its log says why"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionHead:
    """What all events of one answer have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


async def side_by_side(answers: Sequence[Chunks]) -> Choices:
    """Chunks of several answers as they come. One that fails ends them all, and so does closing the iterator."""
    arrived: asyncio.Queue[tuple[int, Chunk] | Exception] = asyncio.Queue()

    async def follow(number: int, chunks: Chunks) -> None:
        async with aclosing(chunks):
            try:
                finished = False
                async for chunk in chunks:
                    finished = chunk.finish_reason is not None
                    arrived.put_nowait((number, chunk))
                assert finished, "an answer ended and did not say why"
            except Exception as error:  # the one who reads the queue raises it
                arrived.put_nowait(error)

    tasks = [asyncio.ensure_future(follow(number, chunks)) for number, chunks in enumerate(answers)]
    try:
        unfinished = len(tasks)
        while unfinished:
            found = await arrived.get()
            if isinstance(found, Exception):
                raise found
            unfinished -= found[1].finish_reason is not None
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole_answer(head: CompletionHead, choices: Choices) -> ChatCompletion:
    """Runs the request to its end."""
    made: dict[int, list[Chunk]] = {}
    async with aclosing(choices):
        async for number, chunk in choices:
            made.setdefault(number, []).append(chunk)
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(number, made[number]) for number in sorted(made)],
        usage=_usage_of([chunks[-1] for chunks in made.values()]),
    )


def _choice(number: int, chunks: Sequence[Chunk]) -> Choice:
    finish_reason = chunks[-1].finish_reason
    assert finish_reason is not None
    message = AnswerMessage(content="".join(chunk.text for chunk in chunks))
    return Choice(index=number, message=message, logprobs=_logprobs(chunks), finish_reason=finish_reason)


def _usage_of(last: Sequence[Chunk]) -> TokenUsage:
    """Of one request, whose prompt counts once. last: the last chunk of each answer."""
    prompt, cached = last[0].usage.prompt_tokens, min(chunk.usage.cached_tokens for chunk in last)
    return TokenUsage.of(Usage(prompt, sum(chunk.usage.completion_tokens for chunk in last), cached))


class EventStream(StreamingResponse):
    """The answer as it is made. Ends the request in the engine when the client goes away.

    first: what was awaited before the response began, so that a request that does not fit gets a proper status.
    choices: what follows. count: of answers.
    """

    def __init__(
        self, head: CompletionHead, first: tuple[int, Chunk], choices: Choices, count: int, include_usage: bool
    ) -> None:
        self._choices = choices
        # A proxy that gathers events would take the point from streaming.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = _events(head, _chained(first, choices), count, include_usage)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._choices.aclose()


async def _chained(first: tuple[int, Chunk], choices: Choices) -> AsyncIterator[tuple[int, Chunk]]:
    yield first
    async for each in choices:
        yield each


async def _events(
    head: CompletionHead, choices: AsyncIterator[tuple[int, Chunk]], count: int, include_usage: bool
) -> AsyncIterator[str]:
    for number in range(count):
        yield _event(head, [ChunkChoice(index=number, delta={"role": "assistant", "content": ""})])
    last = []
    try:
        async for number, chunk in choices:
            if chunk.text or chunk.logprobs:
                delta: Delta = {"content": chunk.text}
                yield _event(head, [ChunkChoice(index=number, delta=delta, logprobs=_logprobs([chunk]))])
            if chunk.finish_reason is not None:
                yield _event(head, [ChunkChoice(index=number, delta={}, finish_reason=chunk.finish_reason)])
                last.append(chunk)
        if include_usage:
            yield _event(head, [], _usage_of(last))
    except Exception:  # the status line is long gone, yet the client must learn that the answer is not whole
        log.exception("request %s failed while its answer was streaming", head.id)
        yield _line(json.dumps(error_body(INTERNAL_ERROR, "server_error")))
        return
    yield _line("[DONE]")


def _logprobs(chunks: Sequence[Chunk]) -> ChoiceLogprobs | None:
    """None where they were not asked for."""
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    return ChoiceLogprobs.of(chain.from_iterable(told)) if told else None


def _event(head: CompletionHead, choices: list[ChunkChoice], usage: TokenUsage | None = None) -> str:
    chunk = ChatCompletionChunk(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)
    return _line(chunk.model_dump_json())


def _line(data: str) -> str:
    return f"data: {data}\n\n"
