"""What keeps a server running asks these: whether it lives, whether it takes requests, and its figures."""

from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from slimdeploy.errors import ServeError

from ..line import SHUTTING_DOWN
from ..metrics import CONTENT_TYPE
from ..openapi import description
from ..protocol.models import State
from .answering import Service


def add_operation(app: FastAPI, service: Service) -> None:
    @app.head("/health")
    @app.get("/health")
    async def health() -> State:
        """The process lives."""
        return State()

    @app.head("/ready")
    @app.get("/ready")
    async def ready() -> State:
        """The model is loaded, for nothing is answered before, and the server is not about to stop."""
        if service.line.is_closed:
            raise ServeError(SHUTTING_DOWN)
        return State()

    described = description(service.engine.model, service.config)

    @app.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return described

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)
