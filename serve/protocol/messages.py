"""Messages of a conversation, as chat completions and /tokenize take them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..engine import Role
from ..turns import PictureUrl, Turn
from .described import also, kinds, says_something
from .wire import Only, Wire

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


PictureText = Annotated[str, Field(json_schema_extra={"format": "picture-url"})]


class ImageUrl(Wire):
    """url: a data: URL with a picture, or an http(s) URL of one on a host that the server fetches from."""

    url: PictureText
    detail: Literal["auto"] | None = None


_FIELDS = {"text": "text", "image_url": "image_url"}


class Part(Wire):
    """A piece of a message: text or a picture."""

    model_config = also(**kinds(_FIELDS))
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        require_its_kind(self, self.type, _FIELDS)
        return self


class ChatMessage(Wire):
    """content: a string stands for one part of text."""

    model_config = also(**says_something("text", "image_url"))
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], Field(fail_fast=True)]
    tool_calls: Annotated[Any, Only([])] = None
    annotations: Annotated[Any, Only([])] = None

    @field_validator("content", mode="before", json_schema_input_type=str | list[Part])
    @classmethod
    def _text_as_part(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # An answer that was empty may come back as history.
        if self.role != "assistant" and not any(part.text or part.image_url for part in self.content):
            raise ValueError("content is empty")
        return self


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


def require_its_kind(part: Wire, kind: str, fields: Mapping[str, str]) -> None:
    """Raises ValueError for a part without what it says, or with something else that nobody would look at."""
    for field in dict.fromkeys(fields.values()):
        if (getattr(part, field) is None) == (field == fields[kind]):
            verb = "needs the" if field == fields[kind] else "has no"
            raise ValueError(f"a part of type '{kind}' {verb} field '{field}'")


def turns(messages: Sequence[ChatMessage]) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            ROLES[message.role],
            tuple(_part(part, f"messages[{n}].content[{i}]") for i, part in enumerate(message.content)),
        )
        for n, message in enumerate(messages)
    )


def _part(part: Part, name: str) -> str | PictureUrl:
    if part.type == "image_url":
        assert part.image_url is not None
        return PictureUrl(part.image_url.url, f"{name}.image_url.url")
    assert part.text is not None
    return part.text
