"""What an answer must be, as requests say it: OpenAI's `response_format`, and vLLM's `structured_outputs` beside it."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..engine import Grammar, RequestError
from .described import THERE, also, exactly_one
from .wire import Only, Wire

SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(Wire):
    """schema: of JSON Schema; left out, any JSON value will do. strict: answers follow it either way."""

    name: SchemaName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    model_config = also(**exactly_one(json_schema=THERE, type={"enum": ["text", "json_object"]}))
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("the field 'json_schema' belongs to the type 'json_schema', which needs it")
        return self


class StructuredOutputs(Wire):
    """Exactly one of the first four. json: a schema, also as text."""

    model_config = also(**exactly_one(regex=THERE, choice=THERE, json=THERE, json_object={"const": True}))
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None

    grammar: Annotated[Any, Only()] = None
    structural_tag: Annotated[Any, Only()] = None
    whitespace_pattern: Annotated[Any, Only()] = None
    disable_fallback: Annotated[Any, Only(False)] = None
    disable_any_whitespace: Annotated[Any, Only(False)] = None
    disable_additional_properties: Annotated[Any, Only(False)] = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [self.regex is not None, self.choice is not None, self.json_ is not None, bool(self.json_object)]
        if sum(given) != 1:
            raise ValueError("should have exactly one of 'regex', 'choice', 'json' and 'json_object'")
        return self


def grammar_of(response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None) -> Grammar | None:
    """What both say together. Raises RequestError where both say something."""
    if response_format is None or response_format.type == "text":
        return None if structured_outputs is None else _structured(structured_outputs)
    if structured_outputs is not None:
        message = "'structured_outputs' and 'response_format' both say what the answer must be; send one of them"
        raise RequestError(message, param="structured_outputs")
    if response_format.json_schema is None:
        return Grammar("json_object", param="response_format")
    return schema_grammar(response_format.json_schema.schema_ or {}, "response_format.json_schema.schema")


def _structured(wanted: StructuredOutputs) -> Grammar:
    name = "structured_outputs"
    if wanted.regex is not None:
        return Grammar("regex", wanted.regex, f"{name}.regex")
    if wanted.choice is not None:
        return Grammar("choice", json.dumps(wanted.choice), f"{name}.choice")
    if wanted.json_ is not None:
        return schema_grammar(wanted.json_, f"{name}.json")
    return Grammar("json_object", param=f"{name}.json_object")


def schema_grammar(schema: dict[str, Any] | str, param: str) -> Grammar:
    """Raises RequestError, which names the field, for what is no schema."""
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        source = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError):
        raise RequestError(f"'{param}': is not valid JSON", param=param) from None
    if not isinstance(schema, dict):
        raise RequestError(f"'{param}': should be a JSON object, a schema", param=param)
    return Grammar("json_schema", source, param)
