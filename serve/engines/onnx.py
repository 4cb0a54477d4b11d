"""The ONNX engine: a conversation in, pieces of the answer out, one token at a time, on onnxruntime.

`OnnxGenerator` is the synchronous whole, for one caller or one thread per request. `OnnxEngine` shares it among the
server's requests without ever blocking the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

from slimdeploy.artifact import Artifact
from slimdeploy.config import ProviderSetting, ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.kernels.library import instruction_set_in_use
from slimdeploy.layouts import held, packed_matrices

from ..engine import Chunk, FinishReason, GenerationRequest, Usage
from ..sampling import Sampler
from ..text import AnswerStream
from .onnx_model import OnnxModel
from .onnx_provider import choose_provider
from .onnx_sessions import import_onnxruntime

log = logging.getLogger(__name__)


class OnnxGenerator:
    """A loaded ONNX artifact. threads: of onnxruntime; 0 takes one per core."""

    def __init__(self, artifact: Artifact, threads: int, setting: ProviderSetting = "auto") -> None:
        provider = choose_provider(import_onnxruntime(), setting)
        log.info("%s: %s", artifact.path, provider)
        note = provider.note_on_packed() if artifact.manifest.is_packed else None
        if note:
            log.warning("%s: %s", artifact.path, note)
        self._model = OnnxModel(artifact.path, threads, provider)
        if artifact.manifest.is_packed and not note:
            log.info("%s: kernels %s", artifact.path, instruction_set_in_use())
            for each in held(packed_matrices(artifact.manifest)):
                log.log(each.log_level, "%s: %s", artifact.path, each)

    def generate(self, request: GenerationRequest) -> Iterator[Chunk]:
        """One chunk per token, with no text while that is not certain; the last one has the finish reason.

        The token that ends the answer counts as a completion token. Raises RequestError before the first chunk.
        """
        model, sessions = self._model, self._model.sessions
        question = model.read(request.messages)
        prompt = model.prompt(question, [model.encode(picture) for picture in question.pictures])
        prompt_tokens = len(question.ids)
        limit = min(request.sampling.max_tokens, model.facts.context - prompt_tokens)
        sample = Sampler(request.sampling)
        answer = AnswerStream(model.text, request.sampling.stop)
        cache, tokens = sessions.new_cache(prompt_tokens + limit), prompt.tokens
        for count in range(1, limit + 1):
            token = sample(sessions.decode(tokens, cache)[0])
            ended = token in model.facts.end_tokens
            text = "" if ended else answer.push(token)
            finish: FinishReason | None = "stop" if ended or answer.stopped else "length" if count == limit else None
            if finish and not answer.stopped:
                text += answer.flush()
                # The rest of the text may complete a stop string after all.
                finish = "stop" if answer.stopped else finish
            yield Chunk(text, Usage(prompt_tokens, count), finish)
            if finish:
                return
            tokens = sessions.one_token([token], [prompt.next_position + count - 1])


class OnnxEngine:
    """Serves an ONNX artifact: `config.concurrency` requests at the same time, the others wait in line."""

    def __init__(self, artifact: Artifact, config: ServeConfig) -> None:
        self._model = artifact.manifest.model
        self._generator = OnnxGenerator(artifact, config.threads, config.onnx.provider)
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
