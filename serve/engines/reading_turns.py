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
        self._prompt: object = None  # that has its turn
        self._prompt_waits = self._picture_waits = False
        self._picture_was_last = False
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
            self._picture_waits = True
            self._changed.wait_for(self._may_encode)
            self._picture_waits, self.is_encoding = False, True
        try:
            yield
        finally:
            with self._changed:
                self.is_encoding, self._picture_was_last = False, True
                self._changed.notify_all()

    def offer(self) -> None:
        """A prompt is there, and is to come before another picture. `changed` is held."""
        self._prompt_waits = True

    def has_prompt(self, prompt: object) -> bool:
        """Whether it has its turn; another one's ends. None: there is none to be read. `changed` is held."""
        if prompt is not self._prompt or prompt is None:
            self._prompt = prompt if self.may_begin else None
            self._prompt_waits = self._prompt is not prompt
            self._picture_was_last &= self._prompt is None
            self._changed.notify_all()
        return self._prompt is not None

    @property
    def may_begin(self) -> bool:
        """Whether a prompt may. `changed` is held."""
        return not self.is_encoding and (self._picture_was_last or not self._picture_waits)

    def end(self) -> None:
        """Nobody reads prompts any more. `changed` is held."""
        self._is_over = True
        self._changed.notify_all()

    def _may_encode(self) -> bool:
        return self._is_over or (self._prompt is None and not (self._prompt_waits and self._picture_was_last))
