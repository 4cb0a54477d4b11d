"""The thread that moves all running sequences on, token by token: they join and leave between two tokens.

Every step gives each answer its next token and reads a piece of one prompt, the first in line, unless it is a picture's
turn. What a sequence fails on ends that one alone.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread

from slimdeploy.errors import ServeError

from ..engine import Chunk, RequestError
from ..line import SHUTTING_DOWN
from .onnx_model import OnnxModel
from .onnx_rows import Rows, Step
from .onnx_sequence import RunningSequence, keep
from .onnx_sessions import Floats
from .pace import Pace
from .reading_turns import ReadingTurns

log = logging.getLogger(__name__)


class Job:
    """A sequence on its way. given: called in the loop's thread with every chunk, or with what ended it otherwise.

    gone: called there once nothing of it is left.
    """

    def __init__(
        self, sequence: RunningSequence, given: Callable[[Chunk | Exception], None], gone: Callable[[], None]
    ) -> None:
        self.sequence = sequence
        self.given = given
        self.gone = gone
        self.is_unwanted = False


class DecodeLoop:
    """At most `count` jobs run at a time, the others wait in the order in which they came."""

    def __init__(self, model: OnnxModel, rows: Rows, count: int) -> None:
        self._model = model
        self._rows = rows
        self._count = count
        self._pace = Pace(rows.fewest_tokens)
        self._jobs: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._changed = Condition()
        self.turns = ReadingTurns(self._changed)
        self._closing = False
        self._thread = Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def join(self, job: Job) -> None:
        """Raises ServeError where the loop is closing."""
        with self._changed:
            if self._closing:
                raise ServeError(SHUTTING_DOWN)
            self._waiting.append(job)
            self.turns.offer()
            self._changed.notify_all()

    def leave(self, job: Job) -> None:
        """Nobody wants more of it: it is gone after the step that goes on."""
        with self._changed:
            job.is_unwanted = True
            self._changed.notify_all()

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that holds something, 0 to 1."""
        used = sum(job.sequence.length for job in tuple(self._jobs))
        return used / (self._count * self._model.facts.context)

    def close(self) -> None:
        """End all jobs, after the step that goes on."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._changes_taken():
            try:
                self._step()
            except Exception as error:  # whatever it is, nobody may wait for ever
                log.exception("a step failed")
                for job in list(self._jobs):
                    self._fail(job, error)

    def _changes_taken(self) -> bool:
        """Let go who leaves, and begin who waits; false once all is over. Sleeps while there is nobody."""
        with self._changed:
            if not (self._jobs or self._waiting):
                self.turns.has_prompt(None)  # a picture may wait for the last one's end
            self._changed.wait_for(lambda: self._closing or self._jobs or self._waiting)
            waiting, closing = self._waiting, self._closing
            if closing:
                self.turns.end()
                self._waiting = deque()
        if closing:
            for job in [*self._jobs, *waiting]:
                self._fail(job, ServeError(SHUTTING_DOWN))
            return False
        for job in [job for job in self._jobs if job.is_unwanted]:
            self._end(job)
        while waiting and len(self._jobs) < self._count:
            self._begin(waiting.popleft())
        return True

    def _begin(self, job: Job) -> None:
        if job.is_unwanted:
            job.gone()
            return
        try:
            self._rows.begin(job.sequence)
        except Exception as error:  # the memory may not be there
            log.exception("a request could not begin")
            job.given(error)
            job.gone()
            return
        job.sequence.past = None  # it is copied
        self._jobs.append(job)

    def _step(self) -> None:
        answering = [job for job in self._jobs if not job.sequence.unread]
        unread = [job for job in self._jobs if job.sequence.unread]
        with self._changed:
            may_read = self.turns.has_prompt(unread[0] if unread else None)
            if not (answering or may_read):
                if unread:
                    self._changed.wait_for(self._is_awaited)
                return
        prompts = len(unread) + self.turns.expected
        piece = self._pace.piece(len(answering), prompts, unread[0].sequence.unread) if may_read else 0
        jobs, steps = list(answering), self._next_tokens(answering)
        if piece:
            reading = unread[0]
            jobs.append(reading)
            steps.append(Step(reading.sequence, reading.sequence.piece(piece)))
        found = self._advance(steps, len(answering))
        for job, step, logits in zip(jobs, steps, found, strict=True):
            self._go_on(job, step, logits)
        with self._changed:
            if self.turns.is_encoding:
                self._changed.wait_for(self._is_awaited, self._pace.pause(len(answering), prompts))

    def _is_awaited(self) -> bool:
        """Whether there is anything to do where a picture has its turn, and answers pause or there are none."""
        return self.turns.may_begin or self._closing or any(job.is_unwanted for job in self._jobs)

    def _next_tokens(self, jobs: Sequence[Job]) -> list[Step]:
        if not jobs:
            return []
        ids, positions = zip(*(job.sequence.next_token for job in jobs), strict=True)
        tokens = self._model.sessions.one_token(ids, positions).each()
        return [Step(job.sequence, own) for job, own in zip(jobs, tokens, strict=True)]

    def _advance(self, steps: Sequence[Step], answers: int) -> Sequence[Floats | Exception]:
        """Where a run over all of them fails, each has one of its own, so that one cannot take others with it."""
        start, is_slowed = time.perf_counter(), self.turns.is_encoding
        try:
            logits = self._rows.advance(steps)
        except Exception as error:
            log.exception("a run over %d sequences failed", len(steps))
            if len(steps) == 1:
                return [error]
        else:
            read = sum(step.tokens.count for step in steps[answers:])
            if not (is_slowed or self.turns.is_encoding):
                self._pace.took(time.perf_counter() - start, answers, read)
            return logits
        found: list[Floats | Exception] = []
        for step in steps:
            try:
                found += self._rows.advance([step])
            except Exception as error:
                found.append(error)
        return found

    def _go_on(self, job: Job, step: Step, logits: Floats | Exception) -> None:
        sequence = job.sequence
        if isinstance(logits, Exception):
            self._fail(job, logits)
            return
        sequence.length += step.tokens.count
        if sequence.unread:
            return
        sequence.tokens = None
        try:
            chunk = sequence.answer.take(logits)
        except RequestError as error:  # its grammar became too complex on the way
            self._fail(job, error)
            return
        except Exception as error:
            log.exception("a request failed")
            self._fail(job, error)
            return
        job.given(chunk)
        if chunk.finish_reason is not None:
            self._end(job)

    def _fail(self, job: Job, error: Exception) -> None:
        job.given(error)
        self._end(job)

    def _end(self, job: Job) -> None:
        """Keep what later requests may go on from, and make room."""
        if job in self._jobs:
            self._jobs.remove(job)
            try:
                keep(self._model, job.sequence, self._rows.bytes_per_token, lambda: self._rows.kept(job.sequence))
            except Exception:
                log.exception("what was computed for a request is not kept")
            self._rows.end(job.sequence)
        job.gone()
