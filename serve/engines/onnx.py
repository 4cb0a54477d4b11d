"""The ONNX engine: a conversation in, pieces of the answer out, one token at a time, on onnxruntime.

`OnnxGenerator` is the synchronous whole, for one caller or one thread per request. `OnnxEngine` shares it among the
server's requests without ever blocking the event loop.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ArtifactError, DataError, ServeError
from slimdeploy.kernels.library import instruction_set_in_use
from slimdeploy.kernels.operators import fallback_note
from slimdeploy.layouts import held, packed_matrices

from ..engine import Chunk, EncodedImage, FinishReason, GenerationRequest, Message, RequestError, Usage
from ..model_files import read_facts
from ..pictures import Picture, load_pictures
from ..prompts import load_prompts
from ..sampling import Sampler
from ..text import AnswerStream, Text
from .onnx_sessions import Floats, OnnxSessions

log = logging.getLogger(__name__)


class OnnxGenerator:
    """A loaded ONNX artifact. threads: of onnxruntime; 0 takes one per core."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._folder = folder = artifact.path
        note = fallback_note() if artifact.manifest.is_packed else None
        if note:
            log.warning("%s: %s", folder, note)
        self._facts = read_facts(folder)
        self._text = Text(folder)
        self._pictures = load_pictures(folder, self._facts.family, self._text)
        self._prompts = load_prompts(folder, self._facts.family, self._text, self._pictures.marker)
        # Pixels can take a thousand times a file's bytes: of all requests together, one picture is decoded at a time.
        # One thread and not a lock, because malloc keeps for each thread what a large picture took there.
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._sessions = OnnxSessions(folder, threads or len(os.sched_getaffinity(0)), self._facts.context)
        if artifact.manifest.is_packed and not note:
            log.info("%s: kernels %s", folder, instruction_set_in_use())
            for each in held(packed_matrices(artifact.manifest)):
                log.log(each.log_level, "%s: %s", folder, each)

    def generate(self, request: GenerationRequest) -> Iterator[Chunk]:
        """One chunk per token, with no text while that is not certain; the last one has the finish reason.

        The token that ends the answer counts as a completion token. Raises RequestError before the first chunk.
        """
        embeddings = self._embed_prompt(request.messages)
        prompt_tokens = embeddings.shape[1]
        limit = min(request.sampling.max_tokens, self._facts.context - prompt_tokens)
        sample = Sampler(request.sampling)
        answer = AnswerStream(self._text, request.sampling.stop)
        cache = self._sessions.new_cache(prompt_tokens + limit)
        for count in range(1, limit + 1):
            token = sample(self._sessions.decode(embeddings, cache))
            ended = token in self._facts.end_tokens
            text = "" if ended else answer.push(token)
            finish: FinishReason | None = "stop" if ended or answer.stopped else "length" if count == limit else None
            if finish and not answer.stopped:
                text += answer.flush()
                # The rest of the text may complete a stop string after all.
                finish = "stop" if answer.stopped else finish
            yield Chunk(text, Usage(prompt_tokens, count), finish)
            if finish:
                return
            embeddings = self._sessions.embed([token])

    def _embed_prompt(self, messages: Sequence[Message]) -> Floats:
        """The conversation as the decoder's input: (1, tokens, hidden), image features in their places."""
        images = [part for message in messages for part in message.parts if not isinstance(part, str)]
        prompt = self._prompts.render(messages)
        ids = self._prompts.ids(prompt)
        self._check_length(len(ids))  # before the costly part; the exact check follows
        if not images:
            return self._sessions.embed(ids)
        pictures = self._prepared(images)
        ids = self._prompts.ids(prompt, pictures)
        self._check_length(len(ids))
        embeddings = self._sessions.embed(ids)
        places = np.flatnonzero(np.array(ids) == self._facts.image_token)
        features = [self._features(picture) for picture in pictures]
        embeddings[0, places] = np.concatenate(features)
        return embeddings

    def _features(self, picture: Picture) -> Floats:
        """(image tokens, hidden)."""
        features = self._sessions.encode_images(picture.inputs["pixel_values"])
        rows: Floats = features.reshape(-1, features.shape[-1])
        if len(rows) != picture.tokens:
            raise ArtifactError(
                f"{self._folder / 'vision_encoder.onnx'} gives {len(rows)} features for a picture of {picture.tokens} "
                "tokens; export the artifact again"
            )
        return rows

    def _prepared(self, images: Sequence[EncodedImage | Image.Image]) -> list[Picture]:
        try:
            return self._decoding.submit(self._pictures.prepare_all, map(_decoded, images)).result()
        except DataError as error:
            raise RequestError(str(error), param="messages") from None

    def _check_length(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self._facts.context:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens, images included, and the model holds {self._facts.context} "
                "tokens of prompt and answer; shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )


def _decoded(image: EncodedImage | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else image.decode()


class OnnxEngine:
    """Serves an ONNX artifact: `config.concurrency` requests at the same time, the others wait in line."""

    def __init__(self, artifact: Artifact, config: ServeConfig) -> None:
        self._model = artifact.manifest.model
        self._generator = OnnxGenerator(artifact, config.threads)
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="onnx")
        self._slots = asyncio.Semaphore(config.concurrency)  # wakes those who wait in the order of their arrival
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Closing the iterator, or cancelling its task, ends the request with the token that is being made."""
        loop = asyncio.get_running_loop()
        async with self._slots:
            chunks = self._generator.generate(request)
            finished = False
            while not finished:
                if self._closed:
                    raise ServeError("the server is shutting down; ask again later")
                chunk = await loop.run_in_executor(self._threads, next, chunks)
                finished = chunk.finish_reason is not None
                yield chunk

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, wait=True)
