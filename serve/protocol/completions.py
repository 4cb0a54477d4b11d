"""POST /v1/completions: a text that the model goes on with, without a conversation around it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator

from slimdeploy.config import ServeConfig

from ..engine import Chunk, FinishReason, RequestError, Sampling, TokenIds
from .answers import TokenUsage, finite
from .described import also, only_with
from .settings import ChoiceFields
from .wire import Label, Only, TokenId

PATH = "/v1/completions"
_DEFAULT_TOKENS = 16
Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Prompts = tuple[str | TokenIds, ...]


def _prompts(given: object) -> Prompts:
    several = given if isinstance(given, list) and given and not _is_id(given[0]) else [given]
    return tuple(map(_prompt, several))


def _prompt(given: object) -> str | TokenIds:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, list) and given and all(map(_is_id, given)):
        return TokenIds(tuple(given))
    raise ValueError("should be a text, the ids of its tokens, or a list of either, none of them empty")


def _is_id(given: object) -> bool:
    return type(given) is int and given >= 0


class CompletionRequest(ChoiceFields):
    """prompt: one or several, of which each is answered."""

    model_config = also(**only_with("stream_options", "stream"))
    model: str
    prompt: Annotated[
        Prompts,
        PlainValidator(
            _prompts,
            json_schema_input_type=Text | Ids | Annotated[list[Text | Ids], Field(min_length=1)],
        ),
    ]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    user: Annotated[str | None, Label()] = None

    echo: Annotated[Any, Only(False)] = None
    best_of: Annotated[Any, Only(1)] = None
    suffix: Annotated[Any, Only("")] = None

    def choices(self, config: ServeConfig) -> int:
        """How many answers to each prompt. Raises RequestError for more than a request may have altogether."""
        count = super().choices(config)
        if len(self.prompt) * count > config.max_choices:
            raise RequestError(
                f"'prompt' has {len(self.prompt)} texts with {count} answers to each; at most {config.max_choices} "
                "answers are given to a request",
                param="prompt",
            )
        return count

    def draw(self, config: ServeConfig) -> Sampling:
        """How its answers are made. Raises RequestError for a value that is out of range."""
        return self.sampling(self.max_tokens or _DEFAULT_TOKENS, self.logprobs, config, self.grammar)


class CompletionLogprobs(BaseModel):
    """A list for each property of tokens. text_offset: in characters, from the beginning of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]

    @classmethod
    def of(cls, chunks: Sequence[Chunk], offset: int = 0) -> Self | None:
        """None where they were not asked for. offset: of the first token."""
        if all(chunk.logprobs is None for chunk in chunks):
            return None
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        offsets = [offset]
        for token in tokens:
            offsets.append(offsets[-1] + len(token.text))
        return cls(
            tokens=[token.text for token in tokens],
            token_logprobs=[finite(token.logprob) for token in tokens],
            top_logprobs=[
                {each.text: finite(each.logprob) for each in (token, *token.alternatives)} for token in tokens
            ],
            text_offset=offsets[:-1],
        )


class CompletionChoice(BaseModel):
    """finish_reason: null in all events of a stream but the last of its answer."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """The whole answer, or one event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None
