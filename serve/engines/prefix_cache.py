"""What an engine keeps between requests, within a budget of bytes: pictures that it saw, and KV caches of sequences.

Knows no runtime, no model and no arrays: only how large things are, and the keys by which they are found again. What is
kept is never written to, so that any number of requests may read it at the same time.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from threading import Lock
from typing import Generic, Protocol, TypeVar

FEWEST_TOKENS = 16
"""That a prefix is worth. A chat template begins all prompts alike: going on from there would save next to nothing, and
some sequence would count as used with every prompt."""


class Kept(Protocol):
    @property
    def nbytes(self) -> int:
        """Of the memory that is allocated for it."""


PictureT = TypeVar("PictureT", bound=Kept)
PastT = TypeVar("PastT", bound=Kept)


@dataclass(frozen=True)
class Pieces:
    """A sequence, as prefixes of it are found again.

    A piece is one token, or a run of tokens that see each other both ways, which no prefix may part. keys: of each,
    equal for equal pieces. ends: tokens up to the end of each.
    """

    keys: tuple[Hashable, ...] = ()
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokens: Sequence[Hashable], in_run: Sequence[bool] | None = None) -> "Pieces":
        """tokens: a key of each. in_run: whether it sees the others of a run both ways; None where no token does."""
        if in_run is None:
            return cls(tuple(tokens), tuple(range(1, len(tokens) + 1)))
        places = range(1, len(tokens) + 1)
        ends = tuple(end for end in places if end == len(tokens) or not (in_run[end - 1] and in_run[end]))
        return cls(tuple(tuple(tokens[start:end]) for start, end in zip((0, *ends), ends, strict=False)), ends)

    def common(self, other: "Pieces") -> int:
        """How many pieces both begin with."""
        return sum(takewhile(bool, map(eq, self.keys, other.keys)))

    def tokens(self, pieces: int) -> int:
        """How many are in the first pieces."""
        return self.ends[pieces - 1] if pieces > 0 else 0


@dataclass(frozen=True)
class Prefix(Generic[PastT]):
    """The first tokens of a sequence that was kept."""

    past: PastT
    tokens: int


class PrefixCache(Generic[PictureT, PastT]):
    """budget: bytes; 0 keeps nothing. What was used least recently goes first, be it a picture or a sequence.

    Keys are not counted: some 100 bytes a token, beside kilobytes of keys and values.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._pictures: dict[bytes, PictureT] = {}
        self._sequences: dict[Pieces, PastT] = {}
        self._sizes: OrderedDict[bytes | Pieces, int] = OrderedDict()  # of both, the least recently used first
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        return self._nbytes

    def picture(self, digest: bytes) -> PictureT | None:
        """digest: of the picture as it came."""
        with self._lock:
            if digest in self._pictures:
                self._sizes.move_to_end(digest)
            return self._pictures.get(digest)

    def keep_picture(self, digest: bytes, picture: PictureT) -> None:
        with self._lock:
            if picture.nbytes <= self._budget:
                self._reserve(digest, picture.nbytes)
                self._pictures[digest] = picture

    def longest_prefix(self, prompt: Pieces) -> Prefix[PastT] | None:
        """That some sequence has in common with the prompt, whose last piece is left out: it gives the next token."""
        with self._lock:
            found = max(self._sequences, key=prompt.common, default=Pieces())
            tokens = prompt.tokens(min(prompt.common(found), len(prompt.keys) - 1))
            if tokens < FEWEST_TOKENS:
                return None
            self._sizes.move_to_end(found)
            return Prefix(self._sequences[found], tokens)

    def keep_sequence(self, sequence: Pieces, nbytes: int, copy: Callable[[], PastT]) -> None:
        """copy: makes what is kept, of `nbytes`. It is called once there is room for it, and only if it is worth it.

        A sequence makes way for a newer one that has most of its tokens: ten questions about a picture must not fill
        the budget with its keys and values ten times. Two conversations that share less, an instruction perhaps, stay.
        """
        with self._lock:
            if nbytes > self._budget or self._has(sequence):
                return
            # Until the copy is made, requests may still go on from what it replaces, unless its memory is needed.
            for other in self._replaced_by(sequence):
                self._sizes.move_to_end(other, last=False)
            self._reserve(sequence, nbytes)
        try:
            past = copy()  # others need not wait for it
        except BaseException:
            with self._lock:
                self._drop(sequence)
            raise
        with self._lock:
            for other in self._replaced_by(sequence):
                self._drop(other)
            self._reserve(sequence, nbytes)
            self._sequences[sequence] = past

    def _replaced_by(self, sequence: Pieces) -> list[Pieces]:
        """Sequences most of whose tokens this one begins with."""
        return [other for other in self._sequences if 2 * sequence.tokens(sequence.common(other)) > other.ends[-1]]

    def _has(self, sequence: Pieces) -> bool:
        """Whether some sequence begins with this one, which then counts as used."""
        for other in self._sequences:
            if sequence.common(other) == len(sequence.keys):
                self._sizes.move_to_end(other)
                return True
        return False

    def _reserve(self, key: bytes | Pieces, nbytes: int) -> None:
        self._drop(key)
        while self._nbytes + nbytes > self._budget:
            self._drop(next(iter(self._sizes)))
        self._sizes[key] = nbytes
        self._nbytes += nbytes

    def _drop(self, key: bytes | Pieces) -> None:
        self._nbytes -= self._sizes.pop(key, 0)
        if isinstance(key, bytes):
            self._pictures.pop(key, None)
        else:
            self._sequences.pop(key, None)
