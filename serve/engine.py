"""What an engine is: the one interface between the server and whatever runs the model."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from slimdeploy.errors import DataError, SlimdeployError
from slimdeploy.images import load_image

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice"]


class RequestError(SlimdeployError):
    """One request cannot be honoured; the server goes on.

    param: the request's field that is to blame, as `messages[0].content`. status: HTTP status. code: OpenAI's word
    for the kind of error, where it has one. retry_after: seconds after which it may be honoured.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.retry_after = retry_after


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


RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, 20),
}
"""Of settings, both ends included. Beyond these repetition penalties a 32-bit logit could overflow."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must be, all of it.

    source: a schema as JSON, a regular expression (Rust's syntax), or a list of texts as JSON; nothing for json_object.
    param: the request's field that says so.
    """

    kind: GrammarKind
    source: str = ""
    param: str = "grammar"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and where the answer ends. Raises RequestError for a value that is out of range.

    Biases come first, then penalties, then the temperature, then min_p, top_k and top_p, as in vLLM. temperature 0 is
    greedy; top_k 0 or -1 keeps all tokens; seed None draws one. stop_tokens: ids that end the answer beside the model's
    own, which ignore_eos passes over. min_tokens: those before which nothing ends the answer. logit_bias: what is added
    to the logits of some tokens, by their ids.
    logprobs: how many alternatives are told beside every token's own log probability; None tells neither.
    grammar: what the answer must be; it ends where nothing can follow, whatever else says that it goes on.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                allowed = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
                raise RequestError(f"'{name}' = {value}: should be {allowed}", param=name)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"'min_tokens' should be at most {self.max_tokens}, what the answer may have",
                param="min_tokens",
            )
        for token, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise RequestError(
                    f"'logit_bias' = {bias} for token {token}: should be from -100 to 100", param="logit_bias"
                )
        if "" in self.stop:
            raise RequestError("'stop': an empty text would end every answer at once", param="stop")


def greedy(max_tokens: int) -> Sampling:
    """The likeliest token, always."""
    return Sampling(max_tokens, temperature=0.0)


@dataclass(frozen=True)
class TokenIds:
    """A text as its tokens."""

    ids: tuple[int, ...]


Prompt = tuple[Message, ...] | str | TokenIds
"""A conversation, which the model's chat template writes, or a text as it stands."""


@dataclass(frozen=True)
class GenerationRequest:
    """What an engine goes on with."""

    prompt: Prompt
    sampling: Sampling

    @property
    def pictures(self) -> int:
        """How many there are."""
        if not isinstance(self.prompt, tuple):
            return 0
        return sum(not isinstance(part, str) for message in self.prompt for part in message.parts)


@dataclass(frozen=True)
class Usage:
    """Tokens in (image tokens included) and out. cached_tokens: those of the prompt that an earlier request left."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log probability: log softmax of the model's own logits, before penalties, temperature and the rest.

    data: the token's bytes in the answer, of which `text` shows parts of characters as U+FFFD; None for a control
    token, which gives the answer no text. alternatives: the likeliest tokens in its place, likeliest first.
    """

    text: str
    data: bytes | None
    logprob: float
    alternatives: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Text that became certain; the last chunk carries the reason for the end.

    logprobs: of the tokens that were made, also of those whose text is not certain yet, but not of the one that ended
    the answer; None where they were not asked for.
    """

    text: str
    usage: Usage = field(default_factory=Usage)
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class Engine(Protocol):
    """Runs one model. `generate` may be called concurrently; closing its iterator aborts the request."""

    @property
    def model(self) -> str:
        """The name that requests ask for."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Raises RequestError before the first chunk when the request does not fit (prompt too long)."""

    async def check_grammar(self, grammar: Grammar) -> None:
        """Whether the model can honour it, which takes no place from others. Raises RequestError where it cannot."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that is in use, 0 to 1."""

    async def tokenize(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Ids of a text, or of a conversation as the model is given it, pictures included.

        Raises RequestError for a conversation that the model cannot answer.
        """

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without control tokens. Raises RequestError for an id that is none."""

    async def close(self) -> None:
        """Release everything; running requests end."""
