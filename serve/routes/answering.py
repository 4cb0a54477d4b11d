"""What all routes that ask the engine have in common: from a request's body to the chunks of its answers."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from ..bodies import json_body
from ..choices import Choices, EventStream, resumed, side_by_side
from ..engine import Chunk, Engine, GenerationRequest, Message, Prompt, RequestError, Sampling
from ..media import read_messages
from ..protocol.wire import error_body
from ..request_log import note_of, noted
from ..turns import Turn

T = TypeVar("T")
log = logging.getLogger(__name__)
INTERNAL_ERROR = "the server failed; its log says why"


@dataclass(frozen=True)
class Service:
    """What routes answer with."""

    engine: Engine
    config: ServeConfig

    def require_model(self, name: str | None) -> None:
        """None stands for the one there is. Raises RequestError for any other."""
        if name is not None and name != self.engine.model:
            message = f"the model '{name[:200]}' does not exist here; this server has '{self.engine.model}'"
            raise RequestError(message, param="model", status=404, code="model_not_found")

    async def body(self, request: Request, understand: Callable[[bytes], T]) -> T:
        """A request's body, understood in a thread: a large one must not hold up those whose answers are streaming."""
        return await asyncio.to_thread(understand, await json_body(request, self.config))

    async def messages(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """The conversation with its pictures."""
        return await asyncio.to_thread(read_messages, turns, self.config)

    def answers(self, request: Request, generations: Sequence[GenerationRequest]) -> Choices:
        """Of one request, side by side."""
        return noted(side_by_side([*map(self.engine.generate, generations)]), note_of(request.scope))


@dataclass(frozen=True)
class Head:
    """What all events of one answer have in common."""

    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, model: str, kind: str) -> "Head":
        """kind: what the id begins with."""
        return cls(model, f"{kind}{uuid.uuid4().hex}")


def several(prompts: Sequence[Prompt], count: int, sampling: Sampling) -> tuple[GenerationRequest, ...]:
    """So many answers to each prompt; those to one are drawn from seeds of their own."""
    seeds = [sampling.seed if sampling.seed is None else sampling.seed + number for number in range(count)]
    return tuple(GenerationRequest(prompt, replace(sampling, seed=seed)) for prompt in prompts for seed in seeds)


async def answered(work: Awaitable[Response]) -> Response:
    """The answer, or one that says no more than that the server failed; its log says how."""
    try:
        return await work
    except (RequestError, ServeError, ClientDisconnect):
        raise
    except Exception:  # left to the framework, it would cost the client its connection as well
        log.exception("a request failed")
        return JSONResponse(error_body(INTERNAL_ERROR, "server_error"), status_code=500)


async def streamed(
    request: Request, choices: Choices, events: Callable[[AsyncIterator[tuple[int, Chunk]]], AsyncIterator[str]]
) -> Response:
    """Begins when there is a first token, so that a request that does not fit gets a proper status."""
    first = await unless_disconnected(request, anext(choices))
    return EventStream(events(resumed(first, choices)), choices)


def reason_of(error: Exception) -> str:
    """What a client may know of a fault."""
    return str(error) if isinstance(error, ServeError) else INTERNAL_ERROR


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The work's result. Cancels it, and raises ClientDisconnect, when the client goes away first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
