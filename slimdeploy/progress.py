"""What a long step tells the person who waits: bars with the time left, or plain lines where there is no terminal.

Steps take a `Progress` as an argument and never print. `Progress.silent()` is for callers that want no output.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """One running step."""

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` units of work are done; `note` says how it stands, such as "loss 0.31"."""


class Progress(AbstractContextManager["Progress"]):
    """Bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.notes: list[str] = []
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    @classmethod
    def silent(cls) -> Self:
        return cls(Console(quiet=True))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        """One line that stays."""
        self.console.print(message, highlight=False, markup=False)

    def note(self, sentence: str) -> None:
        """Said, and kept for the report: something was not done as the settings ask, or as one would expect."""
        self.say(sentence)
        self.notes.append(sentence)

    def bar(self, description: str, total: int) -> Bar:
        if self.console.is_terminal:
            return _RichBar(self._bars, description, total)
        return _Lines(self.console, description, total)

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        bar = self.bar(description, total)
        for item in items:
            yield item
            bar.advance()


class _RichBar:
    def __init__(self, bars: RichProgress, description: str, total: int) -> None:
        self._bars = bars
        self._task = bars.add_task(description, total=total, note="")

    def advance(self, note: str = "", count: int = 1) -> None:
        self._bars.update(self._task, advance=count, note=note)


class _Lines:
    """A line at the end and one every ten seconds before."""

    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console = console
        self._description = description
        self._total = total
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, note: str = "", count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if self._done < self._total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / self._done * (self._total - self._done)
        line = f"{self._description}: {self._done}/{self._total}, {elapsed:.0f} s, {left:.0f} s left"
        self._console.print(f"{line}; {note}" if note else line, highlight=False, markup=False)
