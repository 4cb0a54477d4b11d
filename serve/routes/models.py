"""Which model is served."""

import time

from fastapi import FastAPI

from ..protocol.models import Model, ModelList
from .answering import Service


def add_models(app: FastAPI, service: Service) -> None:
    model = Model(id=service.engine.model, created=int(time.time()))

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Model:
        service.require_model(name)
        return model
