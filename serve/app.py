"""The web application: OpenAI's routes and the chat page, over any engine.

Every refusal has OpenAI's shape, and no library's message reaches a client.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .engine import Engine, RequestError
from .gate import Gate
from .keys import load_keys
from .protocol.wire import error_body
from .request_log import RequestLog
from .routes.answering import Service
from .routes.chat import add_chat
from .routes.completions import add_completions
from .routes.models import add_models
from .routes.page import add_page
from .routes.responses import add_responses
from .routes.tokens import add_tokens

_CLIENT_CLOSED_REQUEST = 499


def create_app(engine: Engine, config: ServeConfig) -> FastAPI:
    """The application closes the engine when it ends."""

    @asynccontextmanager
    async def closing_engine(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    # FastAPI's own documentation pages load scripts from a third party.
    app = FastAPI(title="slimdeploy", lifespan=closing_engine, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False  # a path is one of ours, or none
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)
    app.add_exception_handler(ServeError, _unavailable)
    app.add_middleware(Gate, config=config, keys=load_keys(config))
    app.add_middleware(RequestLog)  # the last is the outermost
    service = Service(engine, config)
    for add in (add_chat, add_completions, add_responses, add_tokens, add_models):
        add(app, service)
    add_page(app)
    return app


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
