"""Which model is served, and whether it is."""

import time
from typing import Any

from fastapi import FastAPI

from .answering import Service


def add_models(app: FastAPI, service: Service) -> None:
    name = service.engine.model
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "slimdeploy"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return model

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The model is loaded: nothing is served before."""
        return {"status": "ok"}
