"""The ONNX engine: a conversation in, pieces of the answer out, one token at a time, on onnxruntime.

`OnnxGenerator` is the synchronous whole, for one caller or one thread per request. `OnnxEngine` shares it among the
server's requests without ever blocking the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from inspect import GEN_RUNNING, getgeneratorstate

from slimdeploy.artifact import Artifact
from slimdeploy.config import ProviderSetting, ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.kernels.library import instruction_set_in_use
from slimdeploy.layouts import held, packed_matrices

from ..engine import Chunk, FinishReason, GenerationRequest, Usage
from ..logprobs import token_logprob
from ..sampling import Sampler
from ..text import AnswerStream
from .onnx_model import OnnxModel, Question
from .onnx_provider import choose_provider
from .onnx_sequence import RunningSequence, running
from .onnx_sessions import import_onnxruntime

log = logging.getLogger(__name__)


class OnnxGenerator:
    """A loaded ONNX artifact. threads: of onnxruntime; 0 takes one per core. cache_mb: kept for later requests."""

    def __init__(
        self, artifact: Artifact, threads: int, cache_mb: float = 0, setting: ProviderSetting = "auto"
    ) -> None:
        provider = choose_provider(import_onnxruntime(), setting)
        log.info("%s: %s", artifact.path, provider)
        note = provider.note_on_packed() if artifact.manifest.is_packed else None
        if note:
            log.warning("%s: %s", artifact.path, note)
        self._model = OnnxModel(artifact.path, threads, provider, int(cache_mb * 1e6))
        if artifact.manifest.is_packed and not note:
            log.info("%s: kernels %s", artifact.path, instruction_set_in_use())
            for each in held(packed_matrices(artifact.manifest)):
                log.log(each.log_level, "%s: %s", artifact.path, each)

    def generate(self, request: GenerationRequest) -> Generator[Chunk, None, None]:
        """One chunk per token, with no text while that is not certain; the last one has the finish reason.

        The token that ends the answer counts as a completion token. Raises RequestError before the first chunk.
        """
        question = self._model.read(request.messages)
        limit = min(request.sampling.max_tokens, self._model.facts.context - len(question.ids))
        with running(self._model, question, limit) as sequence:
            yield from self._answer(request, question, sequence, limit)

    def _answer(
        self, request: GenerationRequest, question: Question, sequence: RunningSequence, limit: int
    ) -> Generator[Chunk, None, None]:
        model, sessions = self._model, self._model.sessions
        sampling = request.sampling
        # Tokens that stand for a picture are not the prompt's words.
        sample = Sampler(sampling, (token for token in question.ids if token != model.facts.image_token))
        ends = model.facts.end_tokens.union(sampling.stop_tokens)
        answer = AnswerStream(model.text, sampling.stop)
        prompt, cache, tokens = sequence.prompt, sequence.cache, sequence.prompt.tokens
        for count in range(1, limit + 1):
            logits = sessions.decode(tokens, cache)[0]
            token = sample(logits)
            ended = token in ends
            text = "" if ended else answer.push(token)
            finish: FinishReason | None = "stop" if ended or answer.stopped else "length" if count == limit else None
            if finish and not answer.stopped:
                text += answer.flush()
                # The rest of the text may complete a stop string after all.
                finish = "stop" if answer.stopped else finish
            logprobs = None
            if sampling.logprobs is not None:
                logprobs = () if ended else (token_logprob(logits, token, sampling.logprobs, model.text),)
            yield Chunk(text, Usage(len(question.ids), count, sequence.cached_tokens), finish, logprobs)
            if finish:
                return
            sequence.answer.append(token)
            tokens = sessions.one_token([token], [prompt.next_position + count - 1])


class OnnxEngine:
    """Serves an ONNX artifact: `config.concurrency` requests at the same time, the others wait in line."""

    def __init__(self, artifact: Artifact, config: ServeConfig) -> None:
        self._model = artifact.manifest.model
        self._generator = OnnxGenerator(artifact, config.threads, config.cache_mb, config.onnx.provider)
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
            try:
                while not finished:
                    if self._closed:
                        raise ServeError("the server is shutting down; ask again later")
                    chunk = await loop.run_in_executor(self._threads, next, chunks)
                    finished = chunk.finish_reason is not None
                    yield chunk
            finally:
                if not self._closed:
                    await loop.run_in_executor(self._threads, _close, chunks)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, wait=True)


def _close(chunks: Generator[Chunk, None, None]) -> None:
    """End a request, and so keep of it what is kept. One that is still making a token ends in its own thread."""
    if getgeneratorstate(chunks) != GEN_RUNNING:
        chunks.close()
