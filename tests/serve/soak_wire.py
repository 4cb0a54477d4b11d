"""HTTP/1.1 by hand: clients of the soak send half a head, stop within a body, and read a byte now and then.

httpx would do none of that, and would hide what a server does with a connection afterwards.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

_PIECE = 1 << 16
_LONGEST_HEAD = 1 << 16


class BrokenOffError(Exception):
    """The server closed a connection on which it owed something, or said what is no HTTP."""


@dataclass(frozen=True)
class Head:
    """How a response begins. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


def head_of(method: str, path: str, length: int | str | None = None, **headers: str) -> bytes:
    """A request's head. length: of its body; a text is sent as it is. Underscores in names stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Connection:
    """To the server, until one end closes it. What was read is kept until it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = bytearray()
        self.is_open = True

    @classmethod
    async def open(cls, port: int, buffer: int | None = None) -> "Connection":
        """buffer: bytes that may lie unread at this end, where it shall be few."""
        endpoint = socket.socket()
        if buffer is not None:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        endpoint.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(endpoint, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=endpoint, limit=buffer or _PIECE))
        except BaseException:
            endpoint.close()
            raise

    async def send(self, data: bytes, piece: int = 1 << 20, pause: float = 0.0) -> None:
        """In pieces of so many bytes, with a pause of so many seconds after each."""
        try:
            for start in range(0, len(data), piece):
                self._writer.write(data[start : start + piece])
                await self._writer.drain()
                await asyncio.sleep(pause)
        except OSError as error:
            self.is_open = False
            raise BrokenOffError(f"while sending: {error}") from None

    async def response(self) -> Response:
        head = await self.head()
        body = b"".join([piece async for piece in self.body(head)])
        return Response(head.status, head.headers, body)

    async def head(self) -> Head:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > _LONGEST_HEAD:
                raise BrokenOffError("a head without an end")
            await self._more()
        first, *lines = bytes(self._take(end + 4)).decode("latin-1").strip().split("\r\n")
        version, status, *_ = first.split(" ")
        if version != "HTTP/1.1" or not status.isdecimal():
            raise BrokenOffError(f"no head of a response: {first[:100]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.is_open = headers.get("connection", "").lower() != "close"
        return Head(int(status), headers)

    async def body(self, head: Head, piece: int = _PIECE) -> AsyncIterator[bytes]:
        """As it comes, at most so many bytes at once."""
        if head.headers.get("transfer-encoding") == "chunked":
            while size := int((await self._line()).split(b";")[0], 16):
                async for part in self._exactly(size, piece):
                    yield part
                await self._line()
            await self._line()
            return
        async for part in self._exactly(int(head.headers.get("content-length", 0)), piece):
            yield part

    async def _exactly(self, size: int, piece: int) -> AsyncIterator[bytes]:
        while size:
            if not self._rest:
                await self._more(piece)
            part = bytes(self._take(min(size, piece)))
            size -= len(part)
            yield part

    async def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            await self._more(64)
        return bytes(self._take(end + 2)).strip()

    def _take(self, size: int) -> bytearray:
        taken = self._rest[:size]
        del self._rest[:size]
        return taken

    async def _more(self, most: int = _PIECE) -> None:
        try:
            data = await self._reader.read(most)
        except OSError as error:
            self.is_open = False
            raise BrokenOffError(f"while reading: {error}") from None
        if not data:
            self.is_open = False
            raise BrokenOffError(f"closed by the server, with {len(self._rest)} bytes of a response")
        self._rest += data

    async def closed_by_server(self) -> bytes:
        """What it says until it closes."""
        try:
            while True:
                await self._more()
        except BrokenOffError:
            return bytes(self._rest)

    def reset(self) -> None:
        """Without a word, as when a device loses its network."""
        endpoint = self._writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.is_open = False

    async def close(self) -> None:
        self.is_open = False
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
