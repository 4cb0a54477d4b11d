"""GET /v1/models, and the answers of routes that say little."""

from typing import Any, Literal

from pydantic import BaseModel


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["slimdeploy"] = "slimdeploy"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class State(BaseModel):
    status: Literal["ok"] = "ok"


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refusal says, in OpenAI's shape."""

    error: Fault


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return ErrorBody(error=Fault(message=message, type=kind, param=param, code=code)).model_dump()
