"""The ONNX engine: a conversation in, pieces of the answer out, one token at a time, on onnxruntime.

`OnnxGenerator` is the synchronous whole, for one caller. `OnnxEngine` answers the server's requests together without
ever blocking the event loop.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

from slimdeploy.artifact import Artifact
from slimdeploy.config import ProviderSetting, ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.kernels.library import instruction_set_in_use
from slimdeploy.layouts import held, packed_matrices

from ..engine import Chunk, GenerationRequest, Grammar, Message, RequestError
from ..grammar import Grammars
from ..line import SHUTTING_DOWN
from ..model_files import AS_THE_MODEL, TokenLimits
from .onnx_loop import DecodeLoop, Job
from .onnx_model import OnnxModel
from .onnx_provider import choose_provider
from .onnx_rows import rows_for
from .onnx_sequence import keep, prepared
from .onnx_sessions import import_onnxruntime

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
log = logging.getLogger(__name__)

_NICE = 10


def load_model(
    artifact: Artifact,
    threads: int,
    cache_mb: float = 0,
    setting: ProviderSetting = "auto",
    limits: TokenLimits = AS_THE_MODEL,
) -> OnnxModel:
    """A loaded ONNX artifact. threads: of onnxruntime; 0 takes one per core. cache_mb: kept for later requests."""
    provider = choose_provider(import_onnxruntime(), setting)
    log.info("%s: %s", artifact.path, provider)
    note = provider.note_on_packed() if artifact.manifest.is_packed else None
    if note:
        log.warning("%s: %s", artifact.path, note)
    model = OnnxModel(artifact.path, threads, provider, int(cache_mb * 1e6), limits)
    if artifact.manifest.is_packed and not note:
        log.info("%s: kernels %s", artifact.path, instruction_set_in_use())
        for each in held(packed_matrices(artifact.manifest)):
            log.log(each.log_level, "%s: %s", artifact.path, each)
    return model


class OnnxGenerator:
    """Answers one request at a time, in the caller's thread."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._grammars = Grammars(model.text, model.facts.end_tokens, ServeConfig().grammar_timeout_s)

    def generate(self, request: GenerationRequest) -> Generator[Chunk, None, None]:
        """One chunk per token, with no text while that is not certain; the last one has the finish reason.

        The token that ends the answer counts as a completion token. Raises RequestError before the first chunk.
        """
        sessions = self._model.sessions
        grammar = request.sampling.grammar
        sequence = prepared(self._model, request, self._grammars.constraint(grammar) if grammar else None)
        cache = sessions.new_cache(sequence.room)
        if sequence.past:
            cache.start_from(sequence.past, sequence.length)
        tokens = sequence.tokens
        assert tokens is not None
        try:
            while True:
                logits = sessions.decode(tokens, cache)[0]
                sequence.length += tokens.count
                chunk = sequence.answer.take(logits)
                yield chunk
                if chunk.finish_reason:
                    return
                token, position = sequence.next_token
                tokens = sessions.one_token([token], [position])
        finally:
            keep(self._model, sequence, cache.bytes_per_token, lambda: cache.first(sequence.length))


class OnnxEngine:
    """Serves an ONNX artifact: `config.concurrency` requests at the same time.

    A request is read first, its pictures by a thread of their own, so that nobody's answer stands still for them; then
    it joins those that are answered together. Those who ask for more at a time than that keep what was read in memory.
    """

    def __init__(self, artifact: Artifact, config: ServeConfig) -> None:
        self._name = artifact.manifest.model
        limits = TokenLimits(config.max_prompt_tokens, config.max_total_tokens)
        self._model = load_model(artifact, config.threads, config.cache_mb, config.onnx.provider, limits)
        rows = rows_for(self._model.sessions, config.concurrency)
        self._decoding = DecodeLoop(self._model, rows, config.concurrency)
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._grammars = Grammars(self._model.text, self._model.facts.end_tokens, config.grammar_timeout_s)
        self._grammars.prepare()  # now, when it halts nobody's answer
        # Two threads: a grammar that was tried before waits for none that is tried now.
        self._trying, self._compiling = (
            ThreadPoolExecutor(1, thread_name_prefix="grammars", initializer=_step_back) for _ in range(2)
        )
        self._closed = False

    @property
    def model(self) -> str:
        return self._name

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Closing the iterator, or cancelling its task, ends the request with the token that is being made."""
        loop = asyncio.get_running_loop()
        constraint = None
        if grammar := request.sampling.grammar:
            constraint = await self._done_by(self._compiling, self._grammars.constraint, grammar)
        chunks: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        gone = asyncio.Event()

        def begin() -> Job:
            sequence = prepared(self._model, request, constraint, self._decoding.turns.picture)
            job = Job(sequence, _in(loop, chunks.put_nowait), _in(loop, gone.set))
            self._decoding.join(job)
            return job

        submitted = self._submitted(self._pictures if request.pictures else self._texts, begin)
        beginning = asyncio.wrap_future(submitted)
        try:
            with self._decoding.turns.expecting(request.pictures):
                await asyncio.shield(beginning)
            while True:
                found = await chunks.get()
                if isinstance(found, Exception):
                    raise found
                yield found
                if found.finish_reason is not None:
                    return
        finally:
            if not submitted.cancel():  # its turn has come, and it is over when nothing is done for it any more
                await asyncio.wait([beginning])
                if not beginning.exception():
                    self._decoding.leave(beginning.result())
                    await gone.wait()

    @property
    def context(self) -> int:
        return self._model.facts.context

    @property
    def kv_usage(self) -> float:
        return self._decoding.kv_usage

    async def check_grammar(self, grammar: Grammar) -> None:
        is_tried = await self._done_by(self._compiling, self._grammars.is_tried, grammar)
        await self._done_by(self._compiling if is_tried else self._trying, self._grammars.check, grammar)

    async def tokenize(self, prompt: str | tuple[Message, ...]) -> list[int]:
        if isinstance(prompt, str):
            return await self._done_by(self._texts, self._model.tokens, prompt)
        return (await self._done_by(self._pictures, self._model.read, prompt)).ids

    async def detokenize(self, tokens: Sequence[int]) -> str:
        count = self._model.sessions.vocabulary
        if unknown := [token for token in tokens if not 0 <= token < count]:
            raise RequestError(f"'tokens' has {unknown[0]}, and the model has {count} tokens", param="tokens")
        return await self._done_by(self._texts, self._model.text.decode, tokens)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._decoding.close)
        for worker in (self._texts, self._pictures, self._trying, self._compiling):
            await asyncio.to_thread(worker.shutdown)

    async def _done_by(self, worker: ThreadPoolExecutor, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.wrap_future(self._submitted(worker, function, *arguments))

    def _submitted(self, worker: ThreadPoolExecutor, function: Callable[[*Ts], T], *arguments: *Ts) -> "Future[T]":
        """Raises ServeError where the engine is closed; what still waits for its turn then ends with it."""

        def work() -> T:
            self._require_open()
            return function(*arguments)

        self._require_open()
        return worker.submit(work)

    def _require_open(self) -> None:
        if self._closed:
            raise ServeError(SHUTTING_DOWN)


def _step_back() -> None:
    """A grammar can wait for tokens, and not the other way round.

    On Linux alone a thread has a priority of its own: elsewhere the whole process would step back.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _NICE))


def _in(loop: asyncio.AbstractEventLoop, function: Callable[..., None]) -> Callable[..., None]:
    """The function, called in the loop's thread whatever thread asks for it; nothing once the loop is closed."""

    def call(*arguments: object) -> None:
        with suppress(RuntimeError):  # by which asyncio says so
            loop.call_soon_threadsafe(function, *arguments)

    return call
