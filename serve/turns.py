"""A conversation as a client sent it: who says what, with pictures still as URLs."""

from dataclasses import dataclass, field

from .engine import Role


@dataclass(frozen=True)
class PictureUrl:
    """param: the request's field that holds it, as `messages[0].content[1].image_url.url`."""

    url: str = field(repr=False)
    param: str


@dataclass(frozen=True)
class Turn:
    """parts: in order, each a text or a picture."""

    role: Role
    parts: tuple[str | PictureUrl, ...]
