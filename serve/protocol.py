"""OpenAI's chat completions on the wire: what a request may say, and what is answered.

Nothing is ignored silently: a field is honoured, or it is at a value that changes nothing, or the request is refused
with the field's name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .engine import FinishReason, RequestError, TokenLogprob, Usage

CHAT_PATH = "/v1/chat/completions"
# Fields that OpenAI documents and this server does not honour, with the values at which they change nothing.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
# Fields that have no effect on an answer by OpenAI's own word.
_LABELS = {
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
}


class _Wire(BaseModel):
    """Strict types; further fields are kept, for `_refuse_extras` to judge."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class ImageUrl(_Wire):
    url: str
    detail: Literal["auto"] | None = None


class Part(_Wire):
    """A piece of a message: text or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type '{self.type}' needs the field '{self.type}'")
        return self


class ChatMessage(_Wire):
    """content: a string stands for one part of text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _text_as_part(cls, content: object) -> object:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # An answer that was empty may come back as history.
        if self.role != "assistant" and not any(part.text or part.image_url for part in self.content):
            raise ValueError("content is empty")
        return self


class StreamOptions(_Wire):
    include_usage: bool | None = None


Stop = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]


class ChatRequest(_Wire):
    """POST /v1/chat/completions: OpenAI's fields, and those by which vLLM extends them.

    Settings that `Sampling` has by the same name are judged there.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, gt=0)
    n: int | None = Field(None, gt=0)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Stop] | None = Field(None, max_length=4)
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_as_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop


class TokenizeRequest(_Wire):
    """POST /tokenize: a text, or a conversation as the model is given it, the tokens of its pictures too."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either 'prompt' or 'messages'")
        return self


class DetokenizeRequest(_Wire):
    """POST /detokenize: the text of tokens, control tokens left out."""

    model: str | None = None
    tokens: list[TokenId]


Request = TypeVar("Request", bound=BaseModel)


def parse_request(body: bytes) -> ChatRequest:
    """Raises RequestError that names the field to blame."""
    request = _parsed(ChatRequest, body)
    _refuse_extras(request, "", _NEUTRAL_VALUES, _LABELS)
    if request.top_logprobs and not request.logprobs:
        raise RequestError("'top_logprobs' is only allowed when 'logprobs' is true", param="top_logprobs")
    if request.stream_options is not None:
        if not request.stream:
            raise RequestError("'stream_options' is only allowed when 'stream' is true", param="stream_options")
        _refuse_extras(request.stream_options, "stream_options.", {"include_obfuscation": (False,)})
    _refuse_extras_of(request.messages)
    return request


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """Raises RequestError that names the field to blame."""
    request = _parsed(TokenizeRequest, body)
    _refuse_extras(request, "", {"add_special_tokens": (True,), "add_generation_prompt": (True,)})
    _refuse_extras_of(request.messages or [])
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    """Raises RequestError that names the field to blame."""
    request = _parsed(DetokenizeRequest, body)
    _refuse_extras(request, "", {})
    return request


def _parsed(kind: type[Request], body: bytes) -> Request:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error) from None


def _refuse_extras_of(messages: Sequence[ChatMessage]) -> None:
    for number, message in enumerate(messages):
        name = f"messages[{number}]."
        _refuse_extras(message, name, {"tool_calls": ([],), "annotations": ([],)})
        for index, part in enumerate(message.content):
            _refuse_extras(part, f"{name}content[{index}].", {})
            if part.image_url is not None:
                _refuse_extras(part.image_url, f"{name}content[{index}].image_url.", {})


def _refuse_extras(
    value: BaseModel, path: str, neutral: Mapping[str, tuple[Any, ...]], labels: set[str] | frozenset[str] = frozenset()
) -> None:
    for name, given in (value.model_extra or {}).items():
        # 1 == True in Python, not on the wire.
        is_neutral = any(type(given) is type(allowed) and given == allowed for allowed in neutral.get(name, ()))
        if given is None or is_neutral or name in labels:
            continue
        remedy = " or ".join(["leave it out", *(f"send {json.dumps(allowed)}" for allowed in neutral.get(name, ()))])
        param = path + _shortened(name)
        raise RequestError(f"'{param}' is not supported by this server; {remedy}", param=param)


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
        return RequestError("the body must be a JSON object")
    value = first["input"]
    shown = f" = {_shortened(json.dumps(value))}" if isinstance(value, str | int | float | None) else ""
    return RequestError(f"'{param}'{shown}: {reason}", param=param)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        )


class LikelyToken(BaseModel):
    """bytes: null for a control token, which gives the answer no text."""

    token: str
    logprob: float
    bytes: list[int] | None

    @classmethod
    def of(cls, token: TokenLogprob) -> Self:
        data = None if token.data is None else list(token.data)
        # JSON has no infinity; this is OpenAI's number for what is as good as impossible.
        return cls(token=token.text, logprob=max(token.logprob, -9999.0), bytes=data)


class ChosenToken(LikelyToken):
    top_logprobs: list[LikelyToken]

    @classmethod
    def of(cls, token: TokenLogprob) -> Self:
        return cls(**vars(LikelyToken.of(token)), top_logprobs=[*map(LikelyToken.of, token.alternatives)])


class ChoiceLogprobs(BaseModel):
    content: list[ChosenToken]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Iterable[TokenLogprob]) -> Self:
        return cls(content=[*map(ChosenToken.of, tokens)])


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
