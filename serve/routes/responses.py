"""POST /v1/responses."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from ..choices import gathered
from ..disconnected import unless_disconnected
from ..engine import Chunk, GenerationRequest, RequestError
from ..protocol import responses as protocol
from ..protocol.responses import OutputMessage, OutputText, ResponseRequest, ResponseUsage, without_bytes
from ..refusals import told
from .answering import Head, Service, answered, streamed, whole
from .events import line, log_failure


def add_responses(app: FastAPI, service: Service) -> None:
    @app.post(protocol.PATH)
    async def responses(request: Request) -> Response:
        return await answered(_respond(request, service))


async def _respond(request: Request, service: Service) -> Response:
    wanted, generation = await _understood(request, service)
    head = Head.of(service.engine.model, "resp_")
    begun = protocol.Response.begun(wanted, head.id, head.created, head.model)
    choices = service.answers(request, [generation])
    try:
        if wanted.stream:
            return await streamed(request, choices, lambda each: _events(begun, each))
        (chunks,) = await unless_disconnected(request, gathered(choices))
    except RequestError as error:
        raise _in_own_words(error, wanted) from None
    return whole(begun.ended(_message(chunks), ResponseUsage.of(chunks[-1].usage)))


async def _understood(request: Request, service: Service) -> tuple[ResponseRequest, GenerationRequest]:
    """What is asked for, without the input: while a request waits in line, only its pictures take memory."""
    wanted = await service.body(request, ResponseRequest)
    service.require_model(wanted.model)
    sampling = wanted.draw(service.config)
    messages = await service.messages(request, await asyncio.to_thread(wanted.turns))
    return wanted.model_copy(update={"input": []}), GenerationRequest(messages, sampling)


def _in_own_words(error: RequestError, wanted: ResponseRequest) -> RequestError:
    """An engine counts messages, the first of which the instructions may be."""
    param = (error.param or "").removeprefix("messages")
    if error.param is None or param == error.param:
        return error
    if wanted.instructions and param:
        number, _, rest = param.removeprefix("[").partition("]")
        param = f"[{int(number) - 1}]{rest}"
    own = "instructions" if param.startswith("[-1]") else f"input{param}"
    return RequestError(str(error), own, error.status, error.code)


def _message(chunks: Sequence[Chunk], own_id: str | None = None) -> OutputMessage:
    status: Literal["completed", "incomplete"] = "incomplete" if chunks[-1].finish_reason == "length" else "completed"
    return OutputMessage(id=own_id or _message_id(), status=status, content=[OutputText.of(chunks)])


def _message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


class _Events:
    """Events of one response, numbered in the order in which they are made."""

    def __init__(self) -> None:
        self._numbers = count()

    def __call__(self, kind: str, **fields: Any) -> str:
        plain = {name: _plain(value) for name, value in fields.items()}
        return line(json.dumps({"type": kind, "sequence_number": next(self._numbers), **plain}), kind)


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


async def _events(begun: protocol.Response, choices: AsyncIterator[tuple[int, Chunk]]) -> AsyncIterator[str]:
    event, own_id, chunks = _Events(), _message_id(), []
    item: dict[str, Any] = {"output_index": 0}
    part: dict[str, Any] = {"output_index": 0, "item_id": own_id, "content_index": 0}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    empty = OutputMessage(id=own_id, status="in_progress", content=[])
    yield event("response.output_item.added", **item, item=empty)
    yield event("response.content_part.added", **part, part=OutputText(text=""))
    try:
        async for _, chunk in choices:
            chunks.append(chunk)
            if chunk.text or chunk.logprobs:
                yield event("response.output_text.delta", **part, delta=chunk.text, logprobs=without_bytes([chunk]))
        message = _message(chunks, own_id)
    except Exception as error:  # the status line is long gone, yet the client must learn that the answer is not whole
        log_failure(error)
        yield event("response.failed", response=begun.failed(told(error)["error"]["message"]))
        return
    for each in _last_events(event, message, chunks, item, part):
        yield each
    ended = begun.ended(message, ResponseUsage.of(chunks[-1].usage))
    yield event(f"response.{ended.status}", response=ended)


def _last_events(
    event: _Events, message: OutputMessage, chunks: Sequence[Chunk], item: dict[str, Any], part: dict[str, Any]
) -> Iterator[str]:
    (text,) = message.content
    yield event("response.output_text.done", **part, text=text.text, logprobs=without_bytes(chunks))
    yield event("response.content_part.done", **part, part=text)
    yield event("response.output_item.done", **item, item=message)
