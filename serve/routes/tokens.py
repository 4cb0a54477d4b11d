"""POST /tokenize and /detokenize: vLLM's routes beside OpenAI's."""

import asyncio

from fastapi import FastAPI, Request
from starlette.responses import Response

from ..disconnected import unless_disconnected
from ..protocol.messages import turns
from ..protocol.tokens import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from .answering import Service, answered, whole


def add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await answered(_tokenize(request, service))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return await answered(_detokenize(request, service))


async def _tokenize(request: Request, service: Service) -> Response:
    wanted = await service.body(request, TokenizeRequest)
    service.require_model(wanted.model)
    if wanted.messages is None:
        assert wanted.prompt is not None
        tokens = await service.engine.tokenize(wanted.prompt)
    else:
        messages = await service.messages(request, await asyncio.to_thread(turns, wanted.messages))
        tokens = await unless_disconnected(request, service.engine.tokenize(messages))
    return whole(TokenizeAnswer(count=len(tokens), max_model_len=service.engine.context, tokens=tokens))


async def _detokenize(request: Request, service: Service) -> Response:
    wanted = await service.body(request, DetokenizeRequest)
    service.require_model(wanted.model)
    return whole(DetokenizeAnswer(prompt=await service.engine.detokenize(wanted.tokens)))
