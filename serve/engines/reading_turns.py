"""Pictures are encoded and prompts are read in turns: at once each would have half of the cores, and none be sooner."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class ReadingTurns:
    """One prompt, one picture, one prompt, as long as there are both; a prompt's turn lasts until all of it is read.

    changed: the caller's, told of everything; it is held where a method says so. expected: requests whose pictures are
    not all encoded. is_encoding: whether a picture has its turn.
    """

    def __init__(self, changed: Condition) -> None:
        self.expected = 0
        self.is_encoding = False
        self._changed = changed
        self._prompt: object = None
        self._is_wanted = False
        self._is_over = False

    @contextmanager
    def expecting(self, pictures: int) -> Iterator[None]:
        """A request with so many pictures is on its way to its turns."""
        self.expected += pictures > 0
        try:
            yield
        finally:
            self.expected -= pictures > 0

    @contextmanager
    def picture(self) -> Iterator[None]:
        """Waits for a turn, and has it. For one thread at a time."""
        with self._changed:
            self._is_wanted = True
            self._changed.wait_for(lambda: self._prompt is None or self._is_over)
            self._is_wanted, self.is_encoding = False, True
        try:
            yield
        finally:
            with self._changed:
                self.is_encoding = False
                self._changed.notify_all()

    def offer(self, prompt: object) -> None:
        """A prompt is there, and comes before the next picture where none has the turn. `changed` is held."""
        if self._prompt is None and not self.is_pictures:
            self._prompt = prompt

    def has_prompt(self, prompt: object) -> bool:
        """Whether it has a turn; another one's ends. None: there is none to be read. `changed` is held."""
        if prompt is not self._prompt:
            self._prompt = None if self.is_pictures else prompt
            self._changed.notify_all()
        return self._prompt is not None

    @property
    def is_pictures(self) -> bool:
        """Whether no prompt can begin. `changed` is held."""
        return self.is_encoding or self._is_wanted

    def end(self) -> None:
        """Nobody reads prompts any more. `changed` is held."""
        self._is_over = True
        self._changed.notify_all()
