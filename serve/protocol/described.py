"""What fields have to do with each other, in JSON Schema's terms: no type says it, and validators do in Python."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

DESCRIBED: dict[str, Any] = {"additionalProperties": {"type": "null"}}
"""Of every class: null counts as left out."""
THERE: dict[str, Any] = {"not": {"type": "null"}}


def also(**described: Any) -> ConfigDict:
    """What a class says of itself in JSON Schema beside its fields."""
    return ConfigDict(json_schema_extra=DESCRIBED | described)


def only_with(field: str, switch: str, *off: Any) -> dict[str, Any]:
    """In JSON Schema: a field that has none of the values `off`, where it is there, only where the switch is true."""
    unused = {"properties": {field: {"enum": [None, *off]}}}
    return {"anyOf": [unused, {"properties": {switch: {"const": True}}, "required": [switch]}]}


def exactly_one(**fields: dict[str, Any]) -> dict[str, Any]:
    """In JSON Schema: one field, and no other, is there and as it is said."""
    return {"oneOf": [{"properties": {name: said}, "required": [name]} for name, said in fields.items()]}


def kinds(fields: Mapping[str, str]) -> dict[str, Any]:
    """A part's types in JSON Schema. fields: the one that each needs; it has no other's."""
    nothing = {"type": "null"}
    return {
        "oneOf": [
            {
                "properties": {"type": {"const": kind}}
                | {other: THERE if other == needed else nothing for other in fields.values()},
                "required": [needed],
            }
            for kind, needed in fields.items()
        ]
    }


def says_something(*fields: str) -> dict[str, Any]:
    """A message in JSON Schema: an earlier answer may be empty; others are a text, or have a part with such a field."""
    full = [
        {"properties": {field: {"type": ["string", "object"], "minLength": 1}}, "required": [field]} for field in fields
    ]
    content = [{"type": "string", "minLength": 1}, {"type": "array", "contains": {"anyOf": full}}]
    return {
        "anyOf": [{"properties": {"role": {"const": "assistant"}}}, {"properties": {"content": {"anyOf": content}}}]
    }
