"""The web application: OpenAI's routes and the chat page, over any engine.

Every refusal has OpenAI's shape, and no library's message reaches a client.
"""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .engine import Engine, RequestError
from .gate import Gate
from .keys import load_keys
from .line import Line
from .metrics import Gauges, Metrics
from .other_pages import OtherPages
from .quota import Quota
from .refusals import refusal
from .request_log import RequestLog
from .routes.answering import Service
from .routes.chat import add_chat
from .routes.completions import add_completions
from .routes.models import add_models
from .routes.operation import add_operation
from .routes.page import add_page
from .routes.responses import add_responses
from .routes.tokens import add_tokens

if TYPE_CHECKING:
    from .remote_images import PictureFetcher

_CLIENT_CLOSED_REQUEST = 499


def create_app(engine: Engine, config: ServeConfig, fetcher: "PictureFetcher | None" = None) -> FastAPI:
    """Who runs the application closes the engine. Its state has the `line` in which requests stand.

    fetcher: where it is not the one that the settings ask for.
    """
    # FastAPI's own documentation pages load scripts from a third party.
    app = FastAPI(title="slimdeploy", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False  # a path is one of ours, or none
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(Exception, _refused)
    line = app.state.line = Line(config)
    gauges = Gauges(lambda: line.running, lambda: line.waiting, lambda: engine.kv_usage)
    quota, metrics = Quota(config.tokens_per_minute), Metrics(engine.model, gauges)
    service = Service(engine, config, line, quota, metrics, fetcher or _fetcher(config))
    app.add_middleware(Gate, config=config, keys=load_keys(config), quota=quota, line=line)
    if config.cors_origins:  # outside of the gate: browsers ask beforehand, without a key
        app.add_middleware(OtherPages, origins=config.cors_origins)
    app.add_middleware(RequestLog, metrics=metrics)  # the last is the outermost
    for add in (add_chat, add_completions, add_responses, add_tokens, add_models, add_operation):
        add(app, service)
    add_page(app)
    return app


def _fetcher(config: ServeConfig) -> "PictureFetcher | None":
    if not config.image_hosts:
        return None
    from .remote_images import PictureFetcher  # an HTTP client takes memory, which devices have little of

    return PictureFetcher(config)


async def _refused(_: Request, error: Exception) -> Response:
    return refusal(error)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method[:20]} {request.scope['path'][:200]}: {error.detail}"
    answer = refusal(RequestError(message, status=error.status_code))
    answer.headers.update(error.headers or {})
    return answer


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
