"""What all requests have in common: strict types, and errors that name the field.

Nothing is ignored silently: a field is honoured, or it is at a value that changes nothing, or the request is refused
with the field's name.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from ..engine import RequestError
from .described import DESCRIBED


class Wire(BaseModel):
    """Strict types; further fields are kept, for `parsed` to judge, because null counts as left out."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        frozen=True,
        json_schema_extra=DESCRIBED,
    )


class Only:
    """Marks a field that the API documents and this server does not honour: values at which it changes nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, core_schema.any_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [*self.values, None]}

    def _checked(self, given: Any) -> Any:
        # 1 == True in Python, not on the wire.
        if given is None or any(type(given) is type(allowed) and given == allowed for allowed in self.values):
            return given
        raise ValueError(_unsupported(*self.values))


class Label:
    """Marks a field that has no effect on an answer by OpenAI's own word."""


TokenId = Annotated[int, Field(ge=0)]
# Of many faults one is told, and finding the others takes time that everybody waits for.
TokenList = Annotated[list[TokenId], Field(fail_fast=True)]
RequestT = TypeVar("RequestT", bound=Wire)
MOST_ENTRIES = 10_000


def _few(given: object) -> object:
    """Before they are looked at: every fault is found, though one is told."""
    if isinstance(given, dict) and len(given) > MOST_ENTRIES:
        raise ValueError(f"should have at most {MOST_ENTRIES} entries")
    return given


FewEntries = BeforeValidator(_few)
Labels = Annotated[dict[str, str], Field(max_length=MOST_ENTRIES), FewEntries]


def parsed(kind: type[RequestT], body: bytes) -> RequestT:
    """Raises RequestError that names the field to blame."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error) from None
    for param in _unknown_fields(request, ""):
        raise RequestError(f"'{param}' {_unsupported()}", param=param)
    return request


def _unknown_fields(value: object, path: str) -> Iterator[str]:
    """Those that are not null, of the value and of all inside of it."""
    if isinstance(value, Wire):
        for name, inner in value:
            own = f"{path}.{name}" if path else name
            if name not in type(value).model_fields and inner is not None:
                yield f"{path}.{_shortened(name)}" if path else _shortened(name)
            yield from _unknown_fields(inner, own)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _unknown_fields(inner, f"{path}[{number}]")


def _unsupported(*allowed: Any) -> str:
    return "is not supported by this server; " + " or ".join(
        ["leave it out", *(f"send {json.dumps(value)}" for value in allowed)]
    )


def _request_error(error: ValidationError) -> RequestError:
    """About the first fault; pydantic's words for it, ours for where it is."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return RequestError("the body is not valid JSON: " + first["msg"].removeprefix("Invalid JSON: "))
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).removeprefix(".")
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "missing":
        return RequestError(f"'{param}' is required", param=param)
    if not param:
        return RequestError("the body must be a JSON object" if first["type"] == "model_type" else reason)
    if reason.startswith(_unsupported()):
        return RequestError(f"'{param}' {reason}", param=param)
    value = first["input"]
    shown = f" = {_shortened(json.dumps(value))}" if isinstance(value, str | int | float | None) else ""
    return RequestError(f"'{param}'{shown}: {reason}", param=param)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
