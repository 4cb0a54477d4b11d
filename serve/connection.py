"""A connection: HTTP/1.1 as uvicorn speaks it, and an end to every wait for the other side.

What is no HTTP gets an error of OpenAI's shape where one can still be sent, and otherwise leaves no trace.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .protocol.models import error_body

# A head comes in one piece, unless somebody holds a connection for the sake of it.
_SECONDS_FOR_A_HEAD = 60
# Nothing of a stream is taken for so long: its client is gone, and nobody told.
_SECONDS_TO_READ = 120
_NO_HTTP = "what was sent is no HTTP request, or its head is too long"


class Connection(H11Protocol):
    """One that waits for a request between two others is uvicorn's to end."""

    _head_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_due = self.loop.call_later(_SECONDS_FOR_A_HEAD, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A body that goes on when its request is answered gets no more time than a head.
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            self._head_due = _cancelled(self._head_due)
        elif self._head_due is None:
            self._head_due = self.loop.call_later(_SECONDS_FOR_A_HEAD, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._head_due = _cancelled(self._head_due)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(_SECONDS_TO_READ, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_due = _cancelled(self._reading_due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_due = _cancelled(self._head_due)
        self._reading_due = _cancelled(self._reading_due)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own would raise where a response has begun, or lets the application begin another."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(_NO_HTTP, "invalid_request_error")).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
            response = h11.Response(status_code=400, headers=headers, reason="Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
