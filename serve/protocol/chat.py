"""POST /v1/chat/completions: what a request may say, and what is answered."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from slimdeploy.config import ServeConfig

from ..engine import Chunk, FinishReason, RequestError, Sampling
from .answers import ChosenToken, ServiceTier, TokenUsage, chosen_tokens
from .described import also, only_with
from .inert import InertFields
from .messages import Messages
from .settings import ChoiceFields
from .wire import Only

PATH = "/v1/chat/completions"


class ChatRequest(ChoiceFields, InertFields):
    """OpenAI's fields, and vLLM's settings beside them."""

    model_config = also(allOf=[only_with("stream_options", "stream"), only_with("top_logprobs", "logprobs", 0)])
    model: str
    messages: Messages
    max_completion_tokens: int | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, gt=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only("none", "medium")] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None
    store: Annotated[Any, Only(False)] = None

    def draw(self, config: ServeConfig) -> Sampling:
        """How its answers are made. Raises RequestError for a value that is out of range."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("'top_logprobs' is only allowed when 'logprobs' is true", param="top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(self.max_completion_tokens or self.max_tokens, logprobs, config, self.grammar)


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChoiceLogprobs(BaseModel):
    content: list[ChosenToken]
    refusal: None = None

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Self | None:
        tokens = chosen_tokens(chunks)
        return None if tokens is None else cls(content=tokens)


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage
    service_tier: ServiceTier = "default"


Delta = dict[Literal["role", "content"], str]


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None
    service_tier: ServiceTier = "default"
