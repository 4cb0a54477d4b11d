"""A conversation becomes a prompt, and a prompt with its pictures becomes ids.

Between the two stands the prompt's text, in which a marker takes the place of each picture: its length in tokens is
known only after the picture was looked at. What clients write is quoted throughout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.errors import ArtifactError

from .chat_template import load_chat_template
from .engine import Message, RequestError
from .model_files import Family
from .pictures import Picture
from .text import Text


@dataclass(frozen=True)
class Prompts:
    """marker: what stands for a picture. write: the prompt of messages whose texts are quoted.

    has_special_tokens: as the prompt is written, though it does not begin with one.
    """

    text: Text
    marker: str
    write: Callable[[Sequence[Message]], str]
    has_special_tokens: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """Raises RequestError for what the model's prompt has no place for."""
        quoted = [
            Message(m.role, tuple(self.text.quote(part) if isinstance(part, str) else part for part in m.parts))
            for m in messages
        ]
        prompt = self.write(quoted)
        _require_system_messages(prompt, quoted)
        images = sum(not isinstance(part, str) for message in messages for part in message.parts)
        places = len(self.text.split(prompt, self.marker)) - 1
        if places != images:
            raise RequestError(
                f"of {images} images the model's chat template has places for {places}; put images into user messages",
                param="messages",
            )
        return prompt

    def ids(self, prompt: str, pictures: Sequence[Picture] | None = None) -> list[int]:
        """Of a rendered prompt. pictures: all that stand in it, in order; None leaves the markers, which are fewer."""
        if pictures is not None:
            first, *others = self.text.split(prompt, self.marker)
            filled = (p.placeholder + other for p, other in zip(pictures, others, strict=True))
            prompt = "".join((first, *filled))
        return self.text.encode(prompt, self.has_special_tokens)


def _require_system_messages(prompt: str, messages: Sequence[Message]) -> None:
    """Many templates of vision-language models pass over them, and nobody would notice.

    Each is looked for behind the one before it, so that many take no longer than one.
    """
    position = 0
    for number, message in enumerate(messages):
        for text in (part.strip() for part in message.parts if isinstance(part, str) and message.role == "system"):
            position = prompt.find(text, position)
            if position < 0:
                raise RequestError(
                    "this model's chat template has no place for a system message", f"messages[{number}]"
                )


def load_prompts(folder: Path, family: Family, text: Text, marker: str) -> Prompts:
    """By the model's chat template, or by the form that a family without one was trained with."""
    if family != "paligemma":
        return Prompts(text, marker, load_chat_template(folder, text.special_tokens).render)
    start = text.special_tokens.get("bos_token")
    if not start:
        raise ArtifactError(f"{folder} names no bos_token (tokenizer_config.json); export the artifact again")
    return Prompts(text, marker, lambda messages: _prefix(messages, marker, start), has_special_tokens=True)


def _prefix(messages: Sequence[Message], marker: str, start: str) -> str:
    """PaliGemma's: all pictures, then one question. It was not trained to converse."""
    if len(messages) != 1 or messages[0].role != "user":
        raise RequestError(
            "this model answers one question about pictures and holds no conversation; send one user message and "
            "nothing else",
            param="messages",
        )
    parts = messages[0].parts
    question = "".join(part for part in parts if isinstance(part, str))
    images = sum(not isinstance(part, str) for part in parts)
    if not images:
        raise RequestError("this model answers questions about pictures only; add an image", param="messages")
    return f"{marker * images}{start}{question}\n"
