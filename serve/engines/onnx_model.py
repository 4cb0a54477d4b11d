"""An ONNX export at work: a conversation becomes what its decoder takes, and that becomes logits.

Knows no sampling and no server: `onnx` serves with it, and every export is verified with it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from slimdeploy.errors import ArtifactError, DataError

from ..engine import EncodedImage, Message, RequestError
from ..model_files import read_facts
from ..pictures import Picture, load_pictures
from ..positions import positions, token_kinds
from ..prompts import load_prompts
from ..text import Text
from .onnx_provider import CPU, Provider
from .onnx_sessions import Floats, OnnxSessions, Tokens

Features = dict[str, Floats]
"""What the vision graph gives for one picture, by its names: features of (tokens, hidden), or of (layers, ...)."""

FEATURES, DEEPSTACK = "image_features", "deepstack_features"


@dataclass(frozen=True)
class Question:
    """A conversation, read: ids as the decoder sees them, and its pictures in order."""

    ids: list[int]
    pictures: list[Picture]


@dataclass(frozen=True)
class Prompt:
    """What the decoder takes of a conversation. next_position: of the token that follows."""

    tokens: Tokens
    next_position: int


class OnnxModel:
    """The files of an ONNX artifact. threads: of onnxruntime; 0 takes one per core."""

    def __init__(self, folder: Path, threads: int, provider: Provider = CPU) -> None:
        self._folder = folder
        self.facts = read_facts(folder)
        self.text = Text(folder)
        self._pictures = load_pictures(folder, self.facts.family, self.text)
        self._prompts = load_prompts(folder, self.facts.family, self.text, self._pictures.marker)
        # Pixels can take a thousand times a file's bytes: of all requests together, one picture is decoded at a time.
        # One thread and not a lock, because malloc keeps for each thread what a large picture took there.
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self.sessions = OnnxSessions(folder, threads or len(os.sched_getaffinity(0)), self.facts.context, provider)

    def read(self, messages: Sequence[Message]) -> Question:
        """Raises RequestError for a conversation that the model cannot answer."""
        images = [part for message in messages for part in message.parts if not isinstance(part, str)]
        prompt = self._prompts.render(messages)
        ids = self._prompts.ids(prompt)
        self._check_length(len(ids))  # before the costly part; the exact check follows
        if not images:
            return Question(ids, [])
        pictures = self._prepared(images)
        ids = self._prompts.ids(prompt, pictures)
        self._check_length(len(ids))
        return Question(ids, pictures)

    def encode(self, picture: Picture) -> Features:
        """Raises ArtifactError where the graph does not give what the processor announced."""
        features = self.sessions.encode_picture(picture.inputs)
        rows = features[FEATURES].reshape(-1, features[FEATURES].shape[-1])
        if len(rows) != picture.tokens:
            raise ArtifactError(
                f"{self._folder / 'vision_encoder.onnx'} gives {len(rows)} features for a picture of {picture.tokens} "
                "tokens; export the artifact again"
            )
        return features | {FEATURES: rows}

    def prompt(self, question: Question, features: Sequence[Features]) -> Prompt:
        """features: of its pictures, in order."""
        embeddings = self.sessions.embed(question.ids)
        more = self.sessions.plain_text(1, len(question.ids))
        if (kinds := token_kinds(self.facts, question.ids)) is not None:
            more["token_type_ids"] = kinds[None]
        if features:
            is_picture = np.array(question.ids) == self.facts.image_token
            embeddings[0, is_picture] = np.concatenate([each[FEATURES] for each in features])
            if "deepstack_embeds" in more:
                more["deepstack_embeds"][:, 0, is_picture] = np.concatenate([each[DEEPSTACK] for each in features], 1)
        where = positions(self.facts, question.ids, question.pictures)
        places = where.ids[None] if where.ids.ndim == 1 else where.ids[:, None]
        return Prompt(Tokens(embeddings, places, more), where.next)

    def _prepared(self, images: Sequence[EncodedImage | Image.Image]) -> list[Picture]:
        try:
            return self._decoding.submit(self._pictures.prepare_all, map(_decoded, images)).result()
        except DataError as error:
            raise RequestError(str(error), param="messages") from None

    def _check_length(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.facts.context:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens, images included, and the model holds {self.facts.context} "
                "tokens of prompt and answer; shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )


def _decoded(image: EncodedImage | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else image.decode()
