"""What all routes that ask the engine have in common: from a request's body to the chunks of its answers."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from ..bodies import json_body
from ..choices import Choices, Chunks, EventStream, resumed, side_by_side
from ..disconnected import unless_disconnected
from ..engine import Chunk, Engine, GenerationRequest, Grammar, Message, Prompt, RequestError, Sampling
from ..line import Line, busy
from ..media import fetch_pictures, read_messages
from ..metrics import AnswerWatch, Metrics
from ..protocol.wire import RequestT, parsed
from ..quota import Quota
from ..refusals import refusal
from ..request_log import note_of
from ..turns import Turn

if TYPE_CHECKING:
    from ..remote_images import PictureFetcher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What routes answer with. fetcher: of pictures that are somewhere else; without one they are refused."""

    engine: Engine
    config: ServeConfig
    line: Line
    quota: Quota
    metrics: Metrics
    fetcher: "PictureFetcher | None" = None

    def require_model(self, name: str | None) -> None:
        """None stands for the one there is. Raises RequestError for any other."""
        if name is not None and name != self.engine.model:
            message = f"the model '{name[:200]}' does not exist here; this server has '{self.engine.model}'"
            raise RequestError(message, param="model", status=404, code="model_not_found")

    async def body(self, request: Request, kind: type[RequestT]) -> RequestT:
        """A request's body, understood in a thread: a large one must not hold up those whose answers are streaming."""
        return await asyncio.to_thread(parsed, kind, await json_body(request, self.config))

    async def messages(self, request: Request, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """The conversation with its pictures. What is fetched for a client is given up when the client goes away."""
        fetched: dict[str, bytes] = {}
        if self.fetcher is not None:
            fetched = await unless_disconnected(request, fetch_pictures(turns, self.config, self.fetcher))
        return await asyncio.to_thread(read_messages, turns, self.config, fetched)

    async def answers(self, request: Request, generations: Sequence[GenerationRequest], count: int = 1) -> Choices:
        """Of one request, side by side. Raises RequestError for a grammar that cannot be compiled.

        count: answers to a prompt, which stand next to each other.
        """
        note = note_of(request.scope)
        if grammar := generations[0].sampling.grammar:
            await self._check(grammar)
        in_line = [self._in_line(generation, is_first=number == 0) for number, generation in enumerate(generations)]
        watches = [AnswerWatch(note.start) for _ in generations]
        read: set[int] = set()  # prompts, by their number
        async with aclosing(side_by_side(in_line)) as choices:
            async for number, chunk in choices:
                if number // count not in read:
                    read.add(number // count)
                    self.metrics.read(chunk.usage)
                    self.quota.charge(note.key, chunk.usage.prompt_tokens)
                self.quota.charge(note.key, chunk.usage.completion_tokens - watches[number].tokens)
                note.saw(number, chunk)
                self.metrics.made(watches[number], chunk, time.perf_counter())
                yield number, chunk

    async def _check(self, grammar: Grammar) -> None:
        """Before the line, where one that explodes would keep a place. Raises RequestError, also for a long wait."""
        try:
            async with asyncio.timeout(self.config.max_wait_s):
                await self.engine.check_grammar(grammar)
        except TimeoutError:
            raise busy("the grammars of others are tried; ask again later", self.line.retry_after) from None

    async def _in_line(self, generation: GenerationRequest, is_first: bool) -> Chunks:
        async with self.line.place(is_first) as waited, aclosing(self.engine.generate(generation)) as chunks:
            self.metrics.waited(waited)
            async for chunk in chunks:
                yield chunk


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
    """The answer, or one that says that the server failed."""
    try:
        return await work
    except (RequestError, ServeError, ClientDisconnect):
        raise
    except Exception as error:  # left to the framework, it would cost the client its connection as well
        log.exception("a request failed")
        return refusal(error)


def whole(answer: BaseModel) -> Response:
    """An answer that is not streamed."""
    return Response(answer.model_dump_json(), media_type="application/json")


async def streamed(
    request: Request, choices: Choices, events: Callable[[AsyncIterator[tuple[int, Chunk]]], AsyncIterator[str]]
) -> Response:
    """Begins when there is a first token, so that a request that does not fit gets a proper status."""
    first = await unless_disconnected(request, anext(choices))
    return EventStream(events(resumed(first, choices)), choices)
