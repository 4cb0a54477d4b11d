"""How many tokens each key may use in a minute, prompts and answers together."""

import math
import time
from collections.abc import Callable

from .line import busy


class Quota:
    """tokens_per_minute: of each key; 0 sets no bound. Who has no key, named "", shares one with all others without.

    A bucket for each key holds that many tokens and is filled as time goes by. What a request takes is known only as it
    is answered, so one that finds something left may take more, and those that follow wait until it is made up.
    """

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = tokens_per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # tokens by key, and when there were so many

    def check(self, key: str) -> None:
        """Raises RequestError (429) for a key that has nothing left."""
        left = self._now_left(key)
        if self._limit and left <= 0:
            seconds = max(math.ceil((1 - left) * 60 / self._limit), 1)
            message = (
                f"this key has used its {self._limit} tokens per minute"
                if key
                else f"requests without a key have used the {self._limit} tokens per minute that they share"
            )
            raise busy(f"{message}; ask again in {seconds} s", retry_after=seconds)

    def charge(self, key: str, tokens: int) -> None:
        if self._limit:
            self._left[key] = self._now_left(key) - tokens, self._clock()

    def _now_left(self, key: str) -> float:
        left, then = self._left.get(key, (float(self._limit), 0.0))
        return min(left + (self._clock() - then) * self._limit / 60, float(self._limit))
