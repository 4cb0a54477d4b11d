"""What a connection may take: a place among so many, and time.

uvicorn waits for ever for who says nothing, or a byte now and then, and for who does not read; enough of them would
keep everybody else out.
"""

import asyncio
import resource
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .engine import RequestError
from .refusals import refusal

_MOST_CONNECTIONS = 4096
# Beside connections: the model's, the log, and what libraries open.
_OTHER_FILES = 256
_SECONDS_FOR_A_HEAD = 30
_SECONDS_UNTIL_READ = 120


class Connection(H11Protocol):
    """uvicorn's, closed where nobody asks for anything in time, and at once where there are too many."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's own words)
        """In OpenAI's shape; once an answer is on its way there is nothing to be said any more."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        answer = refusal(RequestError("this is no HTTP request, or too long a one"))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        head = h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """There is no other protocol; uvicorn would tell the log how to install one."""
        return False

    def _watch(self) -> None:
        """While nothing is answered, a request is awaited: its head, or what was still to come of a refused one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_SECONDS_FOR_A_HEAD, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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


def bound(listener: socket.socket) -> None:
    """Connections inherit it: one whose client takes nothing of what it is sent, or is gone, ends by itself."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _SECONDS_UNTIL_READ)
