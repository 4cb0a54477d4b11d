"""The API described in OpenAPI's terms, from the very classes that requests and answers are made of."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from slimdeploy.config import ServeConfig

from .protocol import chat, completions, responses
from .protocol.models import ErrorBody, Model, ModelList, State
from .protocol.tokens import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from .protocol.wire import Wire

_SCHEMA = "#/components/schemas/{model}"
_OPEN: list[dict[str, list[str]]] = [{}]
"""Security of what needs no key."""
_MEANINGS = {
    400: "What the request says cannot be done.",
    401: "A key is asked for.",
    403: "The server is not reached by this name.",
    404: "There is no such model.",
    408: "The body did not come.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "The line is full, or the key has used up its tokens.",
    503: "The server stops.",
}


@dataclass(frozen=True)
class Operation:
    """answer: as JSON; None for the media type `text`. streams: also as events, where the request asks for it."""

    method: Literal["get", "post"]
    path: str
    summary: str
    answer: type[BaseModel] | None = None
    request: type[Wire] | None = None
    streams: bool = False
    is_open: bool = False
    text: str = ""

    @property
    def name(self) -> str:
        return "_".join((self.method, *self.path.replace("{", "").replace("}", "").replace(".", "/").split("/")[1:]))

    @property
    def refusals(self) -> tuple[int, ...]:
        if self.request is not None:
            return tuple(_MEANINGS)
        statuses = (403,) if self.is_open else (401, 403)
        return (*statuses, 404) if "{" in self.path else (*statuses, 503) if self.path == "/ready" else statuses


OPERATIONS = (
    Operation("post", chat.PATH, "An answer to a conversation", chat.ChatCompletion, chat.ChatRequest, streams=True),
    Operation(
        *("post", completions.PATH, "A text goes on"),
        *(completions.Completion, completions.CompletionRequest),
        streams=True,
    ),
    Operation(
        *("post", responses.PATH, "An answer to a conversation, of which nothing is stored"),
        *(responses.Response, responses.ResponseRequest),
        streams=True,
    ),
    Operation("post", "/tokenize", "The tokens of a text or a conversation", TokenizeAnswer, TokenizeRequest),
    Operation("post", "/detokenize", "The text of tokens", DetokenizeAnswer, DetokenizeRequest),
    Operation("get", "/v1/models", "The model that is served", ModelList),
    Operation("get", "/v1/models/{name}", "The model, by its name", Model),
    Operation("get", "/health", "The process lives", State, is_open=True),
    Operation("get", "/ready", "Requests are taken", State, is_open=True),
    Operation("get", "/metrics", "Figures for Prometheus", text="text/plain"),
    Operation("get", "/openapi.json", "This description", text="application/json"),
    Operation("get", "/", "The chat page", text="text/html", is_open=True),
)


def description(model: str, config: ServeConfig) -> dict[str, Any]:
    """An OpenAPI 3.1 document. model: the one that requests name."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "slimdeploy", "version": version("slimdeploy"), "description": f"Serves the model {model}."},
        "security": [{}, {"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(model, config),
        },
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return paths


def _described(operation: Operation) -> dict[str, Any]:
    refusals = {str(status): _content(_MEANINGS[status], ErrorBody) for status in operation.refusals}
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {"200": _answer(operation), **refusals},
    }
    if operation.request is not None:
        told["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(operation.request)}},
        }
    if "{name}" in operation.path:
        told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return told | ({"security": _OPEN} if operation.is_open else {})


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": operation.summary, "content": {operation.text: {}}}
    told = _content(operation.summary, operation.answer)
    if operation.streams:
        told["content"]["text/event-stream"] = {}  # OpenAPI 3.1 has no words for a row of events
    return told


def _content(meaning: str, kind: type[BaseModel]) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": _reference(kind)}}}


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(model=kind.__name__)}


def _schemas(model: str, config: ServeConfig) -> dict[str, Any]:
    asked = [(each.request, "validation") for each in OPERATIONS if each.request is not None]
    answered = [(each.answer, "serialization") for each in OPERATIONS if each.answer is not None]
    kinds: Any = [*asked, *dict.fromkeys(answered), (ErrorBody, "serialization")]
    schemas: dict[str, Any] = models_json_schema(kinds, ref_template=_SCHEMA)[1]["$defs"]
    for kind, _ in asked:
        fields = schemas[kind.__name__]["properties"]
        if "min_tokens" in fields:
            fields["min_tokens"]["maximum"] = config.max_tokens
        fields["model"] = {"enum": [model]} if kind.model_fields["model"].is_required() else {"enum": [model, None]}
        if "n" in fields:
            fields["n"] = {
                "anyOf": [{"type": "integer", "minimum": 1, "maximum": config.max_choices}, {"type": "null"}]
            }
    return schemas
