"""What an engine is: the one interface between the server and whatever runs the model."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from slimdeploy.errors import DataError, SlimdeployError
from slimdeploy.images import load_image

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


class RequestError(SlimdeployError):
    """One request cannot be honoured; the server goes on.

    param: the request's field that is to blame, as `messages[0].content`. status: HTTP status. code: OpenAI's word
    for the kind of error, where it has one.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


@dataclass(frozen=True)
class EncodedImage:
    """A picture as it came, which takes a thousandth of the memory that its pixels may take.

    param: the request's field that holds it.
    """

    data: bytes = field(repr=False)
    param: str
    max_pixels: int

    def decode(self) -> Image.Image:
        """RGB. Raises RequestError when the pixels cannot be read."""
        try:
            return load_image(self.data, self.max_pixels)
        except DataError as error:
            raise RequestError(f"'{self.param}': {error}", param=self.param) from None


@dataclass(frozen=True)
class Message:
    """One turn; parts in order, each a text or a picture."""

    role: Role
    parts: tuple[str | EncodedImage | Image.Image, ...]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; seed None draws one."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to continue."""

    messages: tuple[Message, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Usage:
    """Tokens in (image tokens included) and out. cached_tokens: those of the prompt that an earlier request left."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """Text that became certain; the last chunk carries the reason for the end."""

    text: str
    usage: Usage = field(default_factory=Usage)
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """Runs one model. `generate` may be called concurrently; closing its iterator aborts the request."""

    @property
    def model(self) -> str:
        """The name that requests ask for."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Raises RequestError before the first chunk when the request does not fit (prompt too long)."""

    async def close(self) -> None:
        """Release everything; running requests end."""
