"""Where the keys and values of running sequences lie, and the run of the decoder that moves several of them on.

`SharedRows` is one large cache with a row for each, over which one run goes. Graphs that attend by onnxruntime's own
operator cannot do that: with `OwnCaches` each sequence has a cache and a run of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from .onnx_sequence import RunningSequence
from .onnx_sessions import Floats, KeyValueCache, OnnxSessions, Past, Tokens, together


@dataclass(frozen=True)
class Step:
    """What a run gives a sequence: one token of its answer, or a piece of its prompt."""

    sequence: RunningSequence
    tokens: Tokens


class Rows(Protocol):
    @property
    def fewest_tokens(self) -> int:
        """Of a piece of a prompt that is worth a step."""

    def begin(self, sequence: RunningSequence) -> None:
        """Give a sequence room for all that it may come to, and its past."""

    def advance(self, steps: Sequence[Step]) -> list[Floats]:
        """The logits after each one's last token, (vocabulary,). Lengths of sequences are the caller's to count."""

    def kept(self, sequence: RunningSequence) -> Past:
        """A copy of what was computed."""

    def end(self, sequence: RunningSequence) -> None:
        """Nothing of it is needed any more."""

    @property
    def bytes_per_token(self) -> int:
        """Of a sequence; while there is one."""


class OwnCaches:
    fewest_tokens = 32  # a piece has a run of its own, which reads all weights for it

    def __init__(self, sessions: OnnxSessions) -> None:
        self._sessions = sessions
        self._caches: dict[RunningSequence, KeyValueCache] = {}

    def begin(self, sequence: RunningSequence) -> None:
        cache = self._sessions.new_cache(sequence.room)
        if sequence.past:
            cache.start_from(sequence.past, sequence.length)
        self._caches[sequence] = cache

    def advance(self, steps: Sequence[Step]) -> list[Floats]:
        return [self._advanced(step) for step in steps]

    def _advanced(self, step: Step) -> Floats:
        cache = self._caches[step.sequence]
        cache.lengths[0] = step.sequence.length  # of a run that failed nothing counts
        logits: Floats = self._sessions.decode(step.tokens, cache)[0]
        return logits

    def kept(self, sequence: RunningSequence) -> Past:
        return self._caches[sequence].first(sequence.length)

    def end(self, sequence: RunningSequence) -> None:
        del self._caches[sequence]

    @property
    def bytes_per_token(self) -> int:
        return next(iter(self._caches.values())).bytes_per_token


class SharedRows:
    """rows: sequences at most. The cache has room for the whole context in each, and is gone when none is left."""

    fewest_tokens = 4  # beside others' tokens they cost next to nothing

    def __init__(self, sessions: OnnxSessions, rows: int) -> None:
        self._sessions = sessions
        self._count = rows
        self._rows: dict[RunningSequence, int] = {}
        self._cache: KeyValueCache | None = None

    def begin(self, sequence: RunningSequence) -> None:
        cache = self._cache = self._cache or self._sessions.new_cache(self._sessions.context, self._count)
        row = next(row for row in range(self._count) if row not in self._rows.values())
        if sequence.past:
            cache.start_from(sequence.past, sequence.length, row)
        self._rows[sequence] = row

    def advance(self, steps: Sequence[Step]) -> list[Floats]:
        """A piece of a prompt goes among others' tokens as if each of its own were a sequence; alone as it is."""
        assert self._cache is not None
        if len(steps) == 1:
            step = steps[0]
            end = step.sequence.length + step.tokens.count
            return [*self._sessions.decode_rows(step.tokens, self._cache, [self._rows[step.sequence]], [end])]
        rows = [row for step in steps for row in [self._rows[step.sequence]] * step.tokens.count]
        ends = [step.sequence.length + i + 1 for step in steps for i in range(step.tokens.count)]
        tokens = together([step.tokens.one_by_one() for step in steps])
        last = list(accumulate((step.tokens.count for step in steps), initial=-1))[1:]
        return [*self._sessions.decode_rows(tokens, self._cache, rows, ends, wanted=last)]

    def kept(self, sequence: RunningSequence) -> Past:
        assert self._cache is not None
        return self._cache.first(sequence.length, self._rows[sequence])

    def end(self, sequence: RunningSequence) -> None:
        del self._rows[sequence]
        if not self._rows:
            self._cache = None

    @property
    def bytes_per_token(self) -> int:
        assert self._cache is not None
        return self._cache.bytes_per_token


def rows_for(sessions: OnnxSessions, count: int) -> Rows:
    """The faster way that the graphs have."""
    return SharedRows(sessions, count) if sessions.takes_rows else OwnCaches(sessions)
