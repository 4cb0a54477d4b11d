"""Reading a streamed chat completion: from the bytes of server-sent events to text, tokens and the moments they came.

Knows nothing of sockets: bytes and their time of arrival go in, and `StreamError` says what is wrong with them.
"""

import json
from typing import Any

from slimdeploy.measurements import TokenSource

# A line longer than this is no chunk of a chat completion, and a stream without line ends must not fill the memory.
_LONGEST_LINE = 1 << 20


class StreamError(Exception):
    """The stream is no chat completion, or carries an error. `kind` is for counting."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class CompletionReader:
    """One answer as it grows. Times are whatever clock `feed` is given."""

    def __init__(self) -> None:
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.done = False
        self.tokens_in: int | None = None
        self._tokens_out: int | None = None
        self._finished = False
        self._texts: list[str] = []
        self._rest = b""

    @property
    def answer(self) -> str:
        return "".join(self._texts)

    @property
    def tokens_out(self) -> int:
        """As the server's usage says, else the number of chunks with text."""
        return len(self._texts) if self._tokens_out is None else self._tokens_out

    @property
    def token_source(self) -> TokenSource:
        return "chunks" if self._tokens_out is None else "usage"

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes that arrived at `now`; an event may be split over several calls."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise StreamError("malformed stream", f"a line of more than {_LONGEST_LINE} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)
            elif line.rstrip() and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise StreamError("malformed stream", f"{line[:80]!r} is no line of an event stream")

    def end(self) -> None:
        """The server closed the stream."""
        if not (self.done or self._finished):
            raise StreamError("closed in mid-stream", f"the stream ended after {len(self._texts)} chunks with text")

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            self._chunk(json.loads(payload), now)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise StreamError("malformed stream", f"{payload[:80]!r} is no chunk of a chat completion") from None

    def _chunk(self, chunk: dict[str, Any], now: float) -> None:
        if error := chunk.get("error"):
            raise StreamError("error in mid-stream", str(error)[:200])
        for choice in chunk["choices"]:
            self.last_token = now
            if text := choice["delta"].get("content"):
                self._texts.append(text + "")  # a TypeError for anything but a text
                self.first_token = now if self.first_token is None else self.first_token
            self._finished |= choice.get("finish_reason") is not None
        if usage := chunk.get("usage"):
            self.tokens_in = int(usage["prompt_tokens"])
            self._tokens_out = int(usage["completion_tokens"])
