"""What the openai package says of an answer, taken at its word: its own classes ignore fields that they do not know."""

from typing import Any

import pydantic


def exactly(kind: Any, values: object) -> Any:
    """The values as one of the package's types. Raises where they have another type, or a field that is not named."""
    found = pydantic.TypeAdapter(kind).validate_python(values, strict=True)
    _assert_known(found, "")
    return found


def _assert_known(value: object, path: str) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, f"{path} has {sorted(value.model_extra or ())}, unknown to {type(value).__name__}"
        for name, inner in value:
            _assert_known(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _assert_known(inner, f"{path}[{number}]")
