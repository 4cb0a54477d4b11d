"""An ONNX export at work: a conversation becomes what its decoder takes, and that becomes logits.

Knows no sampling and no server: `onnx` serves with it, and every export is verified with it.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from slimdeploy.errors import ArtifactError, DataError
from slimdeploy.images import to_rgb

from ..engine import EncodedImage, Message, RequestError
from ..engine import Prompt as Asked
from ..model_files import AS_THE_MODEL, TokenLimits, read_facts
from ..pictures import Picture, load_pictures
from ..positions import positions, token_kinds
from ..prompts import load_prompts
from ..text import Text
from .onnx_provider import CPU, Provider
from .onnx_sessions import Floats, OnnxSessions, Past, Tokens
from .prefix_cache import PrefixCache

Turn = Callable[[], AbstractContextManager[None]]

Features = dict[str, Floats]
"""What the vision graph gives for one picture, by its names: features of (tokens, hidden), or of (layers, ...)."""

FEATURES, DEEPSTACK = "image_features", "deepstack_features"


@dataclass(frozen=True)
class Question:
    """A conversation, read: ids as the decoder sees them, and its pictures in order.

    digests: of the pictures as they came. features: by digest, of those that were seen before.
    """

    ids: list[int]
    pictures: list[Picture]
    digests: list[bytes]
    features: Mapping[bytes, Features]

    def seen(self) -> "Question":
        """Without pixels and features, which are of no use once they are in the prompt."""
        return replace(self, pictures=[replace(picture, inputs={}) for picture in self.pictures], features={})


@dataclass(frozen=True)
class SeenPicture:
    """All that is needed of a picture when it comes again. picture: without inputs of the vision graph."""

    picture: Picture
    features: Features

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.features.values())


@dataclass(frozen=True)
class Prompt:
    """What the decoder takes of a conversation, or of its end. next_position: of the token that follows."""

    tokens: Tokens
    next_position: int


class OnnxModel:
    """The files of an ONNX artifact. threads: of onnxruntime; 0 takes one per core. cache_bytes: kept of requests."""

    def __init__(
        self,
        folder: Path,
        threads: int,
        provider: Provider = CPU,
        cache_bytes: int = 0,
        limits: TokenLimits = AS_THE_MODEL,
    ) -> None:
        self._folder = folder
        self.cache: PrefixCache[SeenPicture, Past] = PrefixCache(cache_bytes)
        facts = read_facts(folder)
        self._limits = limits.within(facts.context)
        self.facts = replace(facts, context=self._limits.total)
        self.text = Text(folder)
        self._pictures = load_pictures(folder, self.facts.family, self.text)
        self._prompts = load_prompts(folder, self.facts.family, self.text, self._pictures.marker)
        # Pixels can take a thousand times a file's bytes: of all requests together, one picture is decoded at a time.
        # One thread and not a lock, because malloc keeps for each thread what a large picture took there.
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self.sessions = OnnxSessions(folder, threads or len(os.sched_getaffinity(0)), self.facts.context, provider)

    def read(self, prompt: Asked) -> Question:
        """Raises RequestError for a prompt that the model cannot go on with."""
        if isinstance(prompt, tuple):
            return self._read_conversation(prompt)
        ids = self.tokens(prompt) if isinstance(prompt, str) else [*prompt.ids]
        if not ids:
            raise RequestError("'prompt' has no tokens", param="prompt")
        for token in ids:
            if token >= self.sessions.vocabulary:
                raise RequestError(
                    f"'prompt' has token {token}, and the model has {self.sessions.vocabulary}", param="prompt"
                )
            if token == self.facts.image_token:
                raise RequestError(
                    f"'prompt' has token {token}, which stands for a picture; send pictures in messages", param="prompt"
                )
        self._check_length(len(ids), "prompt")
        return Question(ids, [], [], {})

    def _read_conversation(self, messages: Sequence[Message]) -> Question:
        images = [part for message in messages for part in message.parts if not isinstance(part, str)]
        self._require_hope([part for message in messages for part in message.parts if isinstance(part, str)])
        prompt = self._prompts.render(messages)
        ids = self._prompts.ids(prompt)
        self._check_length(len(ids))  # before the costly part; the exact check follows
        digests = [_digest(image) for image in images]
        seen = {digest: each for digest in digests if (each := self.cache.picture(digest))}
        new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in seen}
        known = self._prepared(new) | {digest: each.picture for digest, each in seen.items()}
        pictures = [known[digest] for digest in digests]
        if pictures:
            ids = self._prompts.ids(prompt, pictures)
            self._check_length(len(ids))
        return Question(ids, pictures, digests, {digest: each.features for digest, each in seen.items()})

    def tokens(self, text: str) -> list[int]:
        """Of a text that may be a prompt, or a part of one. Raises RequestError for one that is far too long."""
        self._require_hope([text], "prompt")
        return self.text.encode(text)

    def features(self, question: Question, start: int = 0, turn: Turn = nullcontext) -> list[Features]:
        """Of its pictures, in order, less those whose tokens all stand before `start`. None is encoded twice.

        turn: held while one is encoded.
        """
        before = question.ids[:start].count(self.facts.image_token)
        ends = accumulate(picture.tokens for picture in question.pictures)
        placed = zip(question.digests, question.pictures, ends, strict=True)
        needed = [(digest, picture) for digest, picture, end in placed if end > before]
        known = dict(question.features)
        for digest, picture in needed:
            if digest not in known:
                with turn():
                    known[digest] = self.encode(picture)
                self.cache.keep_picture(digest, SeenPicture(replace(picture, inputs={}), known[digest]))
        return [known[digest] for digest, _ in needed]

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

    def prompt(self, question: Question, features: Sequence[Features], start: int = 0) -> Prompt:
        """From the token at `start` on. features: of its pictures, in order, as `features` gives them."""
        ids = question.ids[start:]
        embeddings = self.sessions.embed(ids)
        more = self.sessions.plain_text(1, len(ids))
        if (kinds := token_kinds(self.facts, question.ids)) is not None:
            more["token_type_ids"] = kinds[None, start:]
        if features:
            is_picture = np.array(ids) == self.facts.image_token
            # The first of them may belong to a picture that began before.
            rows = slice(-int(is_picture.sum()), None)
            embeddings[0, is_picture] = np.concatenate([each[FEATURES] for each in features])[rows]
            if "deepstack_embeds" in more:
                deepstack = np.concatenate([each[DEEPSTACK] for each in features], 1)
                more["deepstack_embeds"][:, 0, is_picture] = deepstack[:, rows]
        where = positions(self.facts, question.ids, question.pictures)
        places = where.ids[None] if where.ids.ndim == 1 else where.ids[:, None]
        return Prompt(Tokens(embeddings, places[..., start:], more), where.next)

    def _prepared(self, images: Mapping[bytes, EncodedImage | Image.Image]) -> dict[bytes, Picture]:
        if not images:
            return {}  # without waiting for other requests' pictures
        try:
            pictures = self._decoding.submit(self._pictures.prepare_all, map(_decoded, images.values())).result()
        except DataError as error:
            raise RequestError(str(error), param="messages") from None
        return dict(zip(images, pictures, strict=True))

    def _check_length(self, tokens: int, param: str = "messages") -> None:
        if tokens > self._limits.prompt:
            raise self._too_long(f"{tokens} tokens, images included", param)

    def _require_hope(self, texts: Sequence[str], param: str = "messages") -> None:
        if self.text.is_hopeless(texts, self._limits.prompt):
            raise self._too_long(f"more than {2 * self._limits.prompt} tokens", param)

    def _too_long(self, length: str, param: str) -> RequestError:
        return RequestError(
            f"the prompt has {length}, and may have {self._limits.prompt}, with its answer {self._limits.total}; "
            f"shorten the {param}",
            param=param,
            code="context_length_exceeded",
        )


def _decoded(image: EncodedImage | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else image.decode()


def _digest(image: EncodedImage | Image.Image) -> bytes:
    """sha256 of a picture as it came, or of all that a model sees of one that is decoded."""
    if isinstance(image, EncodedImage):
        return hashlib.sha256(image.data).digest()
    seen = to_rgb(image)
    digest = hashlib.sha256(f"RGB {seen.width} {seen.height} ".encode())
    digest.update(seen.tobytes())
    return digest.digest()
