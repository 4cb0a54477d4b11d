"""POST /v1/chat/completions."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from fastapi import FastAPI, Request
from starlette.responses import Response

from ..choices import gathered
from ..disconnected import unless_disconnected
from ..engine import Chunk, GenerationRequest
from ..protocol.answers import TokenUsage, usage_of
from ..protocol.chat import (
    PATH,
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
)
from ..protocol.messages import turns
from .answering import Head, Service, answered, several, streamed, whole
from .events import events, line


def add_chat(app: FastAPI, service: Service) -> None:
    @app.post(PATH)
    async def chat_completions(request: Request) -> Response:
        return await answered(_complete(request, service))


async def _complete(request: Request, service: Service) -> Response:
    wanted, generations = await _understood(request, service)
    include_usage = wanted.include_usage
    head, count = Head.of(service.engine.model, "chatcmpl-"), len(generations)
    choices = service.answers(request, generations, count)
    if not wanted.stream:
        return whole(_answer(head, await unless_disconnected(request, gathered(choices))))
    return await streamed(request, choices, lambda each: _events(head, each, count, include_usage))


async def _understood(request: Request, service: Service) -> tuple[ChatRequest, tuple[GenerationRequest, ...]]:
    """What is asked for, without the messages: while a request waits in line, only its pictures take memory."""
    wanted = await service.body(request, ChatRequest)
    service.require_model(wanted.model)
    sampling, count = wanted.draw(service.config), wanted.choices(service.config)
    messages = await service.messages(request, await asyncio.to_thread(turns, wanted.messages))
    return wanted.model_copy(update={"messages": []}), several([messages], count, sampling)


def _answer(head: Head, answers: Sequence[Sequence[Chunk]]) -> ChatCompletion:
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(number, chunks) for number, chunks in enumerate(answers)],
        usage=TokenUsage.of(usage_of([chunks[-1] for chunks in answers], len(answers))),
    )


def _choice(number: int, chunks: Sequence[Chunk]) -> Choice:
    finish_reason = chunks[-1].finish_reason
    assert finish_reason is not None
    message = AnswerMessage(content="".join(chunk.text for chunk in chunks))
    return Choice(index=number, message=message, logprobs=ChoiceLogprobs.of(chunks), finish_reason=finish_reason)


async def _events(
    head: Head, choices: AsyncIterator[tuple[int, Chunk]], count: int, include_usage: bool
) -> AsyncIterator[str]:
    def event(choices: list[ChunkChoice], usage: TokenUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)

    def told(number: int, chunk: Chunk) -> Iterator[ChatCompletionChunk]:
        if chunk.text or chunk.logprobs:
            logprobs = ChoiceLogprobs.of([chunk])
            yield event([ChunkChoice(index=number, delta={"content": chunk.text}, logprobs=logprobs)])
        if chunk.finish_reason is not None:
            yield event([ChunkChoice(index=number, delta={}, finish_reason=chunk.finish_reason)])

    for number in range(count):
        yield line(event([ChunkChoice(index=number, delta={"role": "assistant", "content": ""})]).model_dump_json())
    tell_usage = (lambda usage: event([], TokenUsage.of(usage))) if include_usage else None
    async for each in events(choices, told, tell_usage, count):
        yield each
