"""One chat completion: an engine's chunks as a whole answer or as server-sent events."""

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

from .engine import Chunk
from .protocol import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    TokenUsage,
    error_body,
)

Chunks = AsyncGenerator[Chunk, None]
INTERNAL_ERROR = "the server failed; its log says why"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionHead:
    """What all events of one answer have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


async def whole_answer(head: CompletionHead, chunks: Chunks) -> ChatCompletion:
    """Runs the request to its end."""
    async with aclosing(chunks):
        made = [chunk async for chunk in chunks]
    chunk = made[-1]
    assert chunk.finish_reason is not None
    message = AnswerMessage(content="".join(each.text for each in made))
    choice = Choice(message=message, logprobs=_logprobs(made), finish_reason=chunk.finish_reason)
    return ChatCompletion(
        id=head.id, created=head.created, model=head.model, choices=[choice], usage=TokenUsage.of(chunk.usage)
    )


class EventStream(StreamingResponse):
    """The answer as it is made. Ends the request in the engine when the client goes away.

    first: the chunk that was awaited before the response began, so that a request that does not fit gets a proper
    status. chunks: the ones that follow.
    """

    def __init__(self, head: CompletionHead, first: Chunk, chunks: Chunks, include_usage: bool) -> None:
        self._chunks = chunks
        # A proxy that gathers events would take the point from streaming.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = _events(head, _chained(first, chunks), include_usage)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()


async def _chained(first: Chunk, chunks: Chunks) -> AsyncIterator[Chunk]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _events(head: CompletionHead, chunks: AsyncIterator[Chunk], include_usage: bool) -> AsyncIterator[str]:
    yield _event(head, [ChunkChoice(delta={"role": "assistant", "content": ""})])
    try:
        async for chunk in chunks:
            if chunk.text or chunk.logprobs:
                yield _event(head, [ChunkChoice(delta={"content": chunk.text}, logprobs=_logprobs([chunk]))])
            if chunk.finish_reason is not None:
                yield _event(head, [ChunkChoice(delta={}, finish_reason=chunk.finish_reason)])
                if include_usage:
                    yield _event(head, [], TokenUsage.of(chunk.usage))
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
