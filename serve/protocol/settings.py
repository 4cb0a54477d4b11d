"""How answers are drawn and where they end: fields that several endpoints share, and what an engine makes of them."""

import math
from typing import Annotated, Any

from pydantic import Field, field_validator

from slimdeploy.config import ServeConfig

from ..engine import RANGES, Grammar, RequestError, Sampling
from .grammar import ResponseFormat, StructuredOutputs, grammar_of
from .wire import MOST_ENTRIES, FewEntries, Only, TokenList, Wire


def _within(name: str) -> Any:
    """A setting that `Sampling` has by the same name, and judges."""
    lowest, highest = RANGES[name]
    bounds: dict[str, Any] = {"minimum": lowest}
    return Field(None, json_schema_extra=bounds if highest == math.inf else bounds | {"maximum": highest})


Stop = Annotated[str, Field(min_length=1)]
TokenBiases = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(json_schema_extra={"minimum": -100, "maximum": 100})],
    ],
    Field(max_length=MOST_ENTRIES, json_schema_extra={"additionalProperties": False}),
    FewEntries,
]


class SamplingFields(Wire):
    """OpenAI's settings, and those by which vLLM extends them."""

    temperature: float | None = _within("temperature")
    top_p: float | None = _within("top_p")
    top_k: int | None = _within("top_k")
    min_p: float | None = _within("min_p")
    repetition_penalty: float | None = _within("repetition_penalty")
    presence_penalty: float | None = _within("presence_penalty")
    frequency_penalty: float | None = _within("frequency_penalty")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Stop], Field(max_length=4)] | None = None
    stop_token_ids: TokenList | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = _within("min_tokens")
    logit_bias: TokenBiases | None = None

    @field_validator(
        "stop", mode="before", json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=4)] | None
    )
    @classmethod
    def _stop_as_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    def sampling(
        self, asked_tokens: int | None, logprobs: int | None, config: ServeConfig, grammar: Grammar | None = None
    ) -> Sampling:
        """An answer is never longer than the server's limit; one that was cut says so by its finish reason.

        asked_tokens: its longest. logprobs, grammar: as in `Sampling`.
        """
        return Sampling(
            max_tokens=min(asked_tokens or config.max_tokens, config.max_tokens),
            stop=tuple(self.stop or ()),
            stop_tokens=tuple(self.stop_token_ids or ()),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            logprobs=logprobs,
            grammar=grammar,
            **self.model_dump(include=_SAME_NAMES, exclude_none=True),
        )


_SAME_NAMES = set(SamplingFields.model_fields) - {"stop", "stop_token_ids", "logit_bias"}


class EventOptions(Wire):
    """What all streams may be asked for."""

    include_obfuscation: Annotated[Any, Only(False, True)] = None


class StreamOptions(EventOptions):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


def require_stream(options: EventOptions | None, stream: bool | None) -> None:
    """Raises RequestError for options of a stream that is none."""
    if options is not None and not stream:
        raise RequestError("'stream_options' is only allowed when 'stream' is true", param="stream_options")


class ChoiceFields(SamplingFields):
    """Of endpoints that give several answers, and that can be told what these must be."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    n: int | None = Field(None, gt=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def choices(self, config: ServeConfig) -> int:
        """How many answers. Raises RequestError beyond the limit."""
        count = self.n or 1
        if count > config.max_choices:
            raise RequestError(f"'n' = {count}: at most {config.max_choices} answers are given to a request", param="n")
        return count

    @property
    def grammar(self) -> Grammar | None:
        """What each answer must be. Raises RequestError where two fields say so."""
        return grammar_of(self.response_format, self.structured_outputs)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with usage. Raises RequestError for options of a stream that is none."""
        require_stream(self.stream_options, self.stream)
        return bool(self.stream_options and self.stream_options.include_usage)
