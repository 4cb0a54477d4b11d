"""POST /v1/responses: text and pictures in, text out, and nothing is kept: a conversation is sent whole each time."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from slimdeploy.config import ServeConfig

from ..engine import Chunk, Grammar, Sampling, Usage
from ..turns import PictureUrl, Turn
from .answers import ChosenToken, ServiceTier, chosen_tokens
from .described import THERE, also, kinds, only_with, says_something
from .grammar import SchemaName, schema_grammar
from .inert import InertFields
from .messages import ROLES, PictureText, require_its_kind
from .settings import EventOptions, SamplingFields, require_stream
from .wire import Label, Only, Wire

PATH = "/v1/responses"
Status = Literal["in_progress", "completed", "incomplete", "failed"]


_FIELDS = {"input_text": "text", "output_text": "text", "input_image": "image_url"}


class InputPart(Wire):
    """A piece of a message: a text, also of an earlier answer, or a picture by its URL."""

    model_config = also(**kinds(_FIELDS))
    type: Literal["input_text", "output_text", "input_image"]
    text: str | None = None
    image_url: PictureText | None = None
    detail: Literal["auto"] | None = None
    file_id: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    logprobs: Annotated[list[Any] | None, Label()] = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        require_its_kind(self, self.type, _FIELDS)
        return self


class InputMessage(Wire):
    """A message, or an answer as it was given. content: a string stands for one part of text."""

    model_config = also(**says_something("text", "image_url"))
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[InputPart], Field(fail_fast=True)]
    id: Annotated[str | None, Label()] = None
    status: Annotated[Literal["in_progress", "completed", "incomplete"] | None, Label()] = None

    @field_validator("content", mode="before", json_schema_input_type=str | list[InputPart])
    @classmethod
    def _text_as_part(cls, content: object) -> object:
        return [{"type": "input_text", "text": content}] if isinstance(content, str) else content

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # An answer that was empty may come back as history.
        if self.role != "assistant" and not any(part.text or part.image_url for part in self.content):
            raise ValueError("content is empty")
        return self


_SCHEMA = {
    "properties": {"type": {"const": "json_schema"}, "name": THERE, "schema": THERE},
    "required": ["name", "schema"],
}
_NO_SCHEMA = {
    "properties": {"type": {"enum": ["text", "json_object"]}}
    | {name: {"type": "null"} for name in ("name", "description", "schema", "strict")}
}


class TextFormat(Wire):
    """What the answer must be; all but the type belongs to "json_schema"."""

    model_config = also(anyOf=[_SCHEMA, _NO_SCHEMA])
    type: Literal["text", "json_object", "json_schema"]
    name: SchemaName | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Self:
        own = (self.name, self.schema_, self.description, self.strict)
        if None in own[:2] if self.type == "json_schema" else own != (None,) * 4:
            raise ValueError("the fields 'name' and 'schema' belong to the type 'json_schema', which needs them")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """Raises RequestError for a schema that is none."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return Grammar("json_object", param="text.format")
            case "json_schema":
                return schema_grammar(self.schema_ or {}, "text.format.schema")


class TextSettings(Wire):
    format: TextFormat | None = None
    verbosity: Annotated[Any, Only("medium")] = None


class ResponseRequest(SamplingFields, InertFields):
    """OpenAI's fields, and vLLM's settings beside them. input: a string stands for one message of the user."""

    model_config = also(**only_with("stream_options", "stream"))
    model: str
    input: Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, gt=0)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: EventOptions | None = None
    text: TextSettings | None = None

    # True is OpenAI's default, and nothing is stored for all that.
    store: Annotated[Any, Only(False, True)] = None
    max_tool_calls: Annotated[Any, Only()] = None
    background: Annotated[Any, Only(False)] = None
    background_options: Annotated[Any, Only()] = None
    truncation: Annotated[Any, Only("disabled")] = None
    reasoning: Annotated[Any, Only({}, {"effort": "none"}, {"effort": "medium"})] = None
    previous_response_id: Annotated[Any, Only()] = None
    conversation: Annotated[Any, Only()] = None
    context_management: Annotated[Any, Only([])] = None
    prompt: Annotated[Any, Only()] = None
    access_programs: Annotated[Any, Only()] = None
    image: Annotated[Any, Only()] = None

    @field_validator(
        "input",
        mode="before",
        json_schema_input_type=Annotated[str, Field(min_length=1)] | Annotated[list[InputMessage], Field(min_length=1)],
    )
    @classmethod
    def _text_as_message(cls, given: object) -> object:
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @property
    def format(self) -> TextFormat:
        """What the answer must be."""
        return (self.text and self.text.format) or TextFormat(type="text")

    def turns(self) -> tuple[Turn, ...]:
        """The instructions come first, as a system message."""
        said = tuple(
            Turn(
                ROLES[message.role],
                tuple(_part(part, f"input[{n}].content[{i}]") for i, part in enumerate(message.content)),
            )
            for n, message in enumerate(self.input)
        )
        return (Turn("system", (self.instructions,)), *said) if self.instructions else said

    def draw(self, config: ServeConfig) -> Sampling:
        """How its answer is made. Raises RequestError for a value that is out of range."""
        require_stream(self.stream_options, self.stream)
        logprobs = (self.top_logprobs or 0) if self.include or self.top_logprobs else None
        return self.sampling(self.max_output_tokens, logprobs, config, self.format.grammar)


def _part(part: InputPart, name: str) -> str | PictureUrl:
    if part.type == "input_image":
        assert part.image_url is not None
        return PictureUrl(part.image_url, f"{name}.image_url")
    assert part.text is not None
    return part.text


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        tokens = chosen_tokens(chunks) or []
        return cls(text="".join(chunk.text for chunk in chunks), logprobs=[_with_bytes(token) for token in tokens])


def _with_bytes(token: ChosenToken) -> dict[str, Any]:
    """This API knows no null there."""
    told = token.model_dump()
    for each in (told, *told["top_logprobs"]):
        each["bytes"] = each["bytes"] or []
    return told


def without_bytes(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    """Log probabilities as events of a stream tell them."""
    return [
        token.model_dump(exclude={"bytes": True, "top_logprobs": {"__all__": {"bytes"}}})
        for token in chosen_tokens(chunks) or []
    ]


class OutputMessage(BaseModel):
    type: Literal["message"] = "message"
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFault(BaseModel):
    code: Literal["server_error"] = "server_error"
    message: str


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class Response(BaseModel):
    """The answer, and what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None = None
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto", "none"]
    tools: list[Any] = []
    top_p: float
    top_logprobs: int
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]
    service_tier: ServiceTier = "default"
    background: Literal[False] = False

    @classmethod
    def begun(cls, request: ResponseRequest, head_id: str, created: int, model: str) -> Self:
        return cls(
            id=head_id,
            created_at=created,
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            model=model,
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            tool_choice=request.tool_choice or "auto",
            temperature=1.0 if request.temperature is None else request.temperature,
            text={"format": request.format.model_dump(by_alias=True, exclude_none=True)},
            top_p=1.0 if request.top_p is None else request.top_p,
            top_logprobs=request.top_logprobs or 0,
            user=request.user,
            metadata=request.metadata or {},
        )

    def ended(self, message: OutputMessage, usage: ResponseUsage) -> Self:
        """With its answer, whole or cut."""
        is_whole = message.status == "completed"
        change = {
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else IncompleteDetails(),
            "output": [message],
            "usage": usage,
        }
        return self.model_copy(update=change)

    def failed(self, reason: str) -> Self:
        return self.model_copy(update={"status": "failed", "error": ResponseFault(message=reason)})
