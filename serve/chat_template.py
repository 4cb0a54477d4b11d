"""A conversation as the text that the model was trained on, by the model's own jinja template.

Templates come from the artifact, never from a client, and still run in a sandbox. Names and settings follow
transformers, so that both give equal strings.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slimdeploy.errors import ArtifactError

from .engine import Message, RequestError
from .model_files import read_json_if_there

# Characters of a prompt: so many for each that the messages have, and so many for what a template writes itself.
_LARGEST_GROWTH = 4
_LARGEST_FRAME = 1_000_000
_LARGEST_POWER = 64
# Of a template: what expressions, ranges and macros end with that go wrong, or too far.
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


class ChatTemplate:
    """special_tokens: `bos_token` and its like, which the template may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _GenerationTag])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"the artifact's chat template is not valid: {error}; export it again") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, ready for the assistant's turn, with one placeholder per picture.

        Raises RequestError when the template refuses the conversation.
        """
        try:
            characters = sum(len(part) for each in messages for part in each.parts if isinstance(part, str))
            told = [_plain(message) for message in messages]
            pieces = self._template.generate(messages=told, add_generation_prompt=True, **self._special_tokens)
            return _joined(pieces, _LARGEST_GROWTH * characters + _LARGEST_FRAME)
        except _TooLongError:
            raise RequestError(
                "the model's chat template makes too long a prompt of these messages; shorten them",
                param="messages",
                code="context_length_exceeded",
            ) from None
        except _RefusedError as error:
            raise RequestError(f"the model's chat template refuses these messages: {error}", param="messages") from None
        except _FAILURES as error:
            raise RequestError("the model's chat template cannot render these messages", param="messages") from error


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """From the file or the JSON key that holds it; layouts differ with transformers' versions."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), special_tokens)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        source = read_json_if_there(folder / name).get("chat_template")
        if isinstance(source, str):
            return ChatTemplate(source, special_tokens)
    raise ArtifactError(f"{folder} has no chat template (chat_template.jinja); export the artifact again")


def _plain(message: Message) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in message.parts]
    return {"role": message.role, "content": parts}


class _Sandbox(ImmutableSandboxedEnvironment):
    """In which nothing is multiplied beyond the largest frame: a single expression could take all memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for counted, count in ((left, right), (right, left)):
            if isinstance(counted, str | bytes | list | tuple) and isinstance(count, int):
                _require(len(counted) * count <= _LARGEST_FRAME)
        if operator == "**":
            _require(abs(right) <= _LARGEST_POWER)
        return super().call_binop(context, operator, left, right)


def _joined(pieces: Iterable[str], most: int) -> str:
    prompt: list[str] = []
    length = 0
    for piece in pieces:
        prompt.append(piece)
        length += len(piece)
        _require(length <= most)
    return "".join(prompt)


def _require(is_small: bool) -> None:
    if not is_small:
        raise _TooLongError


class _RefusedError(jinja2.TemplateError):
    """A template called `raise_exception`."""


class _TooLongError(jinja2.TemplateError):
    """The prompt would be longer than any that a model takes."""


def _refuse(reason: str) -> None:
    raise _RefusedError(reason)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    """jinja's own filter escapes HTML, which prompts are not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)


class _GenerationTag(Extension):
    """`{% generation %}` marks what to train on; for a prompt its body stands as it is."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)
