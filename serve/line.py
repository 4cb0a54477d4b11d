"""Who is answered and who waits: so many answers at a time, first come first served, and no wait without an end.

Knows neither HTTP nor the engine.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .engine import RequestError

SHUTTING_DOWN = "the server is shutting down; ask again later"
_LONGEST_RETRY = 120
_BODIES_FOR_A_PLACE = 2
"""As large as one may be: that of the answer which is made, and that of the next one in line."""
_WEIGHT = 0.2
"""Of the newest answer in the mean time that a place is held."""


def busy(message: str, retry_after: int) -> RequestError:
    return RequestError(message, status=429, code="rate_limit_exceeded", retry_after=retry_after)


class Line:
    """A request stands in it from its first byte to its last; each of its answers has a place while it is made.

    running, waiting: answers. inside: requests, those whose bodies are read included. held: bytes of their bodies,
    which their pictures and texts take until they leave. One that is closed lets nobody in, and all who are inside come
    to their end.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.running = 0
        self.waiting = 0
        self.inside = 0
        self.held = 0
        self.is_closed = False
        self._most_inside = config.concurrency + config.max_waiting
        self._most_held = _BODIES_FOR_A_PLACE * config.concurrency * int(config.max_body_mb * 1e6)
        self._most_seconds = config.max_wait_s
        self._places = asyncio.Semaphore(config.concurrency)  # wakes those who wait in the order of their arrival
        self._count = config.concurrency
        self._usual_seconds = 1.0

    def close(self) -> None:
        self.is_closed = True

    def enter(self) -> None:
        """Raises ServeError where it is closed, RequestError (429) where it is full."""
        if self.is_closed:
            raise ServeError(SHUTTING_DOWN)
        if self.inside >= self._most_inside:
            raise busy(
                f"{self.inside} requests are running or waiting, and no more are taken; ask again later",
                self.retry_after,
            )
        self.inside += 1

    def hold(self, count: int) -> None:
        """So many more bytes of a request that is inside. Raises RequestError (429) where all have too many."""
        if self.held + count > self._most_held:
            raise busy(
                f"the requests that are running or waiting have {self.held} bytes, and no more are taken; ask again "
                "later",
                self.retry_after,
            )
        self.held += count

    def leave(self, held: int = 0) -> None:
        """held: its bytes."""
        self.inside -= 1
        self.held -= held

    @asynccontextmanager
    async def place(self, is_first: bool = True) -> AsyncIterator[float]:
        """For one answer; gives the seconds that it waited. is_first: of its request, whose wait has an end.

        Raises RequestError (429) when that is over.
        """
        start = time.monotonic()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._most_seconds if is_first else None):
                await self._places.acquire()
        except TimeoutError:
            raise busy(
                f"no place was free within {self._most_seconds:g} s; ask again later", self.retry_after
            ) from None
        finally:
            self.waiting -= 1
        began = time.monotonic()
        self.running += 1
        try:
            yield began - start
        finally:
            self.running -= 1
            self._places.release()
            self._usual_seconds += _WEIGHT * (time.monotonic() - began - self._usual_seconds)

    @property
    def retry_after(self) -> int:
        """Seconds after which a place may be free for who comes last."""
        expected = self._usual_seconds * (self.waiting + 1) / self._count
        return min(max(math.ceil(expected), 1), _LONGEST_RETRY)
