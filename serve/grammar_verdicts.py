"""What came of trying grammars, so that nobody can have the same one tried again and again."""

import hashlib
import time
from collections.abc import Callable
from threading import Lock

_MOST = 256
# One that took too long may have met a busy machine.
_SECONDS_OF_A_REFUSAL = 600


class Verdicts:
    """Of the grammars that were asked for last: what is wrong with each, or an empty text. Several threads may ask.

    fault: tries one. What it raises is no verdict.
    """

    def __init__(self, fault: Callable[[str], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._fault = fault
        self._clock = clock
        self._known: dict[bytes, tuple[str, float]] = {}  # by digest, for grammars may be large; with its moment
        self._changing = Lock()

    def known(self, written: str) -> str | None:
        """None for a grammar that has to be tried, perhaps again."""
        digest = _digest(written)
        with self._changing:
            fault, moment = self._known.pop(digest, ("", None))
            if moment is None or (fault and self._clock() - moment >= _SECONDS_OF_A_REFUSAL):
                return None
            self._known[digest] = fault, moment  # the last one again
            return fault

    def of(self, written: str) -> str:
        fault = self.known(written)
        if fault is None:
            fault = self._fault(written)
            with self._changing:
                self._known[_digest(written)] = fault, self._clock()
                if len(self._known) > _MOST:
                    del self._known[next(iter(self._known))]
        return fault


def _digest(written: str) -> bytes:
    return hashlib.sha256(written.encode(errors="surrogatepass")).digest()
