"""POST /v1/completions."""

from collections.abc import AsyncIterator, Iterator, Sequence

from fastapi import FastAPI, Request
from starlette.responses import Response

from ..choices import gathered
from ..disconnected import unless_disconnected
from ..engine import Chunk
from ..protocol.answers import TokenUsage, usage_of
from ..protocol.completions import PATH, Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from .answering import Head, Service, answered, several, streamed, whole
from .events import events


def add_completions(app: FastAPI, service: Service) -> None:
    @app.post(PATH)
    async def completions(request: Request) -> Response:
        return await answered(_complete(request, service))


async def _complete(request: Request, service: Service) -> Response:
    wanted = await service.body(request, CompletionRequest)
    service.require_model(wanted.model)
    count, include_usage = wanted.choices(service.config), wanted.include_usage
    choices = service.answers(request, several(wanted.prompt, count, wanted.draw(service.config)), count)
    head = Head.of(service.engine.model, "cmpl-")
    if not wanted.stream:
        return whole(_answer(head, await unless_disconnected(request, gathered(choices)), count))
    return await streamed(request, choices, lambda each: _events(head, each, count, include_usage))


def _completion(head: Head, choices: list[CompletionChoice], usage: TokenUsage | None = None) -> Completion:
    return Completion(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)


def _answer(head: Head, answers: Sequence[Sequence[Chunk]], count: int) -> Completion:
    choices = [
        CompletionChoice(
            text="".join(chunk.text for chunk in chunks),
            index=number,
            logprobs=CompletionLogprobs.of(chunks),
            finish_reason=chunks[-1].finish_reason,
        )
        for number, chunks in enumerate(answers)
    ]
    return _completion(head, choices, TokenUsage.of(usage_of([chunks[-1] for chunks in answers], count)))


async def _events(
    head: Head, choices: AsyncIterator[tuple[int, Chunk]], count: int, include_usage: bool
) -> AsyncIterator[str]:
    offsets: dict[int, int] = {}

    def told(number: int, chunk: Chunk) -> Iterator[Completion]:
        if not (chunk.text or chunk.logprobs or chunk.finish_reason):
            return
        logprobs = CompletionLogprobs.of([chunk], offsets.get(number, 0))
        offsets[number] = offsets.get(number, 0) + sum(len(token.text) for token in chunk.logprobs or ())
        choice = CompletionChoice(text=chunk.text, index=number, logprobs=logprobs, finish_reason=chunk.finish_reason)
        yield _completion(head, [choice])

    tell_usage = (lambda usage: _completion(head, [], TokenUsage.of(usage))) if include_usage else None
    async for each in events(choices, told, tell_usage, count):
        yield each
