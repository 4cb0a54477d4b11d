"""An engine's chunks, of one answer or of several to one request, side by side; and the stream that they become."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .disconnected import unless_disconnected
from .engine import Chunk

Chunks = AsyncGenerator[Chunk, None]
Choices = AsyncGenerator[tuple[int, Chunk], None]
"""Chunks of one answer or of several to one request, each with the answer's number."""


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
        # Whoever ends a stream may cancel what it waits for again and again; once is enough for an answer to end well.
        await asyncio.shield(asyncio.gather(*tasks, return_exceptions=True))


async def gathered(choices: Choices) -> list[list[Chunk]]:
    """All chunks of each answer: runs the request to its end."""
    made: dict[int, list[Chunk]] = {}
    async with aclosing(choices):
        async for number, chunk in choices:
            made.setdefault(number, []).append(chunk)
    return [made[number] for number in sorted(made)]


async def resumed(first: tuple[int, Chunk], choices: Choices) -> AsyncIterator[tuple[int, Chunk]]:
    """From the first on, which was awaited by itself."""
    yield first
    async for each in choices:
        yield each


class EventStream(StreamingResponse):
    """Server-sent events, as the answers are made. Ends the request in the engine when the client goes away.

    events: what is sent, made of `choices`.
    """

    def __init__(self, events: AsyncIterator[str], choices: Choices) -> None:
        self._choices = choices
        # A proxy that gathers events would take the point from streaming.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's own way is to cancel again and again what it does not wait for: answers would end behind it."""
        try:
            with suppress(ClientDisconnect):
                await unless_disconnected(Request(scope, receive), self.stream_response(send))
        finally:
            await self._choices.aclose()
