"""What a connection may take: a place among so many, and time.

uvicorn waits for ever for who says nothing, or a byte now and then, and for who does not read; enough of them would
keep everybody else out. What is no HTTP gets an error of OpenAI's shape where one can still be sent, and otherwise
leaves no trace.
"""

import asyncio
import resource
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .engine import RequestError
from .refusals import refusal

_MOST_CONNECTIONS = 4096
# Beside connections: the model's, the log, and what libraries open.
_OTHER_FILES = 256

# A head comes in one piece, unless somebody holds a connection for the sake of it.
_SECONDS_FOR_A_HEAD = 30
# Nothing of a stream is taken for so long: its client is gone, and nobody told.
_SECONDS_TO_READ = 120
_NO_HTTP = "what was sent is no HTTP request, or its head is too long"


class Connection(H11Protocol):
    """Between two requests it is uvicorn's to end; one beyond the bound ends at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_due = _Deadline(self.loop, _SECONDS_FOR_A_HEAD, self.timeout_keep_alive_handler)
        self._reading_due = _Deadline(self.loop, _SECONDS_TO_READ, transport.abort)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._head_due.start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A body that goes on when its request is answered gets no more time than a head.
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._head_due.start()
        else:
            self._head_due.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._head_due.stop()
        self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """One that is closed stays until the rest of an answer is taken, which may be too little to pause writing."""
        if self.transport.is_closing():
            self._reading_due.start()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._reading_due.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_due.stop()
        self._reading_due.stop()
        super().connection_lost(exc)

    def send_400_response(self, _: str) -> None:
        """uvicorn's own would raise where a response has begun, and lets the application begin another."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = refusal(RequestError(_NO_HTTP))
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._end_in_time()

    def _should_upgrade(self) -> bool:
        """There is no other protocol; uvicorn would tell the log how to install one."""
        return False


class _Deadline:
    """What is done when something has not come within so many seconds. Started again, it goes on as it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], object]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._then = then
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._then)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def most_connections() -> int:
    """As many as there are files for."""
    return min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES)


def allow_connections() -> None:
    """Systems let a process open 1024 files unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
