"""The web application: OpenAI's routes and the chat page, over any engine.

Every refusal has OpenAI's shape, and no library's message reaches a client.
"""

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .bodies import json_body
from .completion import INTERNAL_ERROR, CompletionHead, EventStream, side_by_side, whole_answer
from .engine import Engine, GenerationRequest, RequestError, Sampling
from .gate import Gate
from .keys import load_keys
from .media import read_messages
from .protocol import CHAT_PATH, ChatRequest, error_body, parse_detokenize, parse_request, parse_tokenize
from .request_log import RequestLog, note_of, noted

T = TypeVar("T")
log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "static" / "index.html"
_CLIENT_CLOSED_REQUEST = 499
# What a request and `Sampling` call by the same name.
_SETTINGS = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "min_tokens",
}


def create_app(engine: Engine, config: ServeConfig) -> FastAPI:
    """The application closes the engine when it ends."""

    @asynccontextmanager
    async def closing_engine(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    # FastAPI's own documentation pages load scripts from a third party.
    app = FastAPI(title="slimdeploy", lifespan=closing_engine, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)
    app.add_exception_handler(ServeError, _unavailable)
    app.add_middleware(Gate, config=config, keys=load_keys(config))
    app.add_middleware(RequestLog)  # the last is the outermost
    _add_chat(app, engine, config)
    _add_tokens(app, engine, config)
    _add_models(app, engine)
    _add_page(app)
    return app


def _add_chat(app: FastAPI, engine: Engine, config: ServeConfig) -> None:
    @app.post(CHAT_PATH)
    async def chat_completions(request: Request) -> Response:
        return await _answered(_complete(request, engine, config))


def _add_tokens(app: FastAPI, engine: Engine, config: ServeConfig) -> None:
    """vLLM's routes beside OpenAI's."""

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await _answered(_tokenize(request, engine, config))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return await _answered(_detokenize(request, engine, config))


async def _answered(work: Awaitable[Response]) -> Response:
    """The answer, or one that says no more than that the server failed; its log says how."""
    try:
        return await work
    except (RequestError, ServeError, ClientDisconnect):
        raise
    except Exception:  # left to the framework, it would cost the client its connection as well
        log.exception("a request failed")
        return _error(500, INTERNAL_ERROR, "server_error")


async def _tokenize(request: Request, engine: Engine, config: ServeConfig) -> Response:
    wanted = parse_tokenize(await json_body(request, config))
    _require_model(wanted.model, engine)
    if wanted.messages is None:
        assert wanted.prompt is not None
        tokens = await engine.tokenize(wanted.prompt)
    else:
        messages = await asyncio.to_thread(read_messages, wanted.messages, config)
        tokens = await _unless_disconnected(request, engine.tokenize(messages))
    return JSONResponse({"count": len(tokens), "max_model_len": engine.context, "tokens": tokens})


async def _detokenize(request: Request, engine: Engine, config: ServeConfig) -> Response:
    wanted = parse_detokenize(await json_body(request, config))
    _require_model(wanted.model, engine)
    return JSONResponse({"prompt": await engine.detokenize(wanted.tokens)})


def _require_model(name: str | None, engine: Engine) -> None:
    if name is not None and name != engine.model:
        raise _unknown_model(name, engine.model)


async def _complete(request: Request, engine: Engine, config: ServeConfig) -> Response:
    # In a thread: a large body must not hold up those whose answers are streaming. It has no name here, so that it is
    # gone while its request waits in line.
    wanted = await asyncio.to_thread(_understand, await json_body(request, config), engine.model, config)
    answers = [engine.generate(generation) for generation in wanted.generations]
    choices = noted(side_by_side(answers), note_of(request.scope))
    head = CompletionHead(engine.model)
    if not wanted.stream:
        answer = await _unless_disconnected(request, whole_answer(head, choices))
        return Response(answer.model_dump_json(), media_type="application/json")
    first = await _unless_disconnected(request, anext(choices))
    return EventStream(head, first, choices, len(wanted.generations), wanted.include_usage)


@dataclass(frozen=True)
class _Wanted:
    """What is left of a request's body once it is understood. generations: one for each answer."""

    generations: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool


def _understand(body: bytes, model: str, config: ServeConfig) -> _Wanted:
    request = parse_request(body)
    if request.model != model:
        raise _unknown_model(request.model, model)
    include_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
    count = request.n or 1
    if count > config.max_choices:
        raise RequestError(f"'n' = {count}: at most {config.max_choices} answers are given to a request", param="n")
    sampling, messages = _sampling(request, config), read_messages(request.messages, config)
    generations = tuple(GenerationRequest(messages, _of_choice(number, sampling)) for number in range(count))
    return _Wanted(generations, bool(request.stream), include_usage)


def _of_choice(number: int, sampling: Sampling) -> Sampling:
    """Answers to one request are drawn from seeds of their own."""
    if sampling.seed is None or number == 0:
        return sampling
    return replace(sampling, seed=sampling.seed + number)


def _add_models(app: FastAPI, engine: Engine) -> None:
    model = {"id": engine.model, "object": "model", "created": int(time.time()), "owned_by": "slimdeploy"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != engine.model:
            raise _unknown_model(name, engine.model)
        return model

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The model is loaded: nothing is served before."""
        return {"status": "ok"}


def _add_page(app: FastAPI) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = content_security_policy(page)

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(
            page,
            headers={
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )


def content_security_policy(page: str) -> str:
    """Allows the page's own inline script and style, by their hashes, and requests to this server; nothing else."""

    def hashes(tag: str) -> str:
        bodies = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sampling(wanted: ChatRequest, config: ServeConfig) -> Sampling:
    """An answer is never longer than the server's limit; one that was cut says so by its finish reason."""
    asked = wanted.max_completion_tokens or wanted.max_tokens or config.max_tokens
    return Sampling(
        max_tokens=min(asked, config.max_tokens),
        stop=tuple(wanted.stop or ()),
        stop_tokens=tuple(wanted.stop_token_ids or ()),
        logit_bias={int(token): bias for token, bias in (wanted.logit_bias or {}).items()},
        logprobs=(wanted.top_logprobs or 0) if wanted.logprobs else None,
        **wanted.model_dump(include=_SETTINGS, exclude_none=True),
    )


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
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


def _unknown_model(name: str, served: str) -> RequestError:
    message = f"the model '{name[:200]}' does not exist here; this server has '{served}'"
    return RequestError(message, param="model", status=404, code="model_not_found")


def _error(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(message, kind, param, code), status_code=status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, str(error), "invalid_request_error", error.param, error.code)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", "invalid_request_error")


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _unavailable(_: Request, error: Exception) -> Response:
    return _error(503, str(error), "server_error")
