"""A host of pictures that misbehaves as it is told to, and the ways to it: names that resolve to anything, and
connections that end on loopback, whatever address they are for. Nothing else is ever contacted."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpcore
import pytest

from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.remote_images import PictureFetcher

CERTIFICATE = Path(__file__).parent / "pictures_example.pem"
"""Of pictures.example, signed by itself, with its key."""
HOSTS = ("pictures.example", "*.cdn.example", "odd.example:8443", "xn--mnchen-3ya.example")
URL = "http://pictures.example/a.png"
COULD_NOT = "'picture' could not be fetched; send the picture itself, as a data: URL"
PUBLIC = "93.184.215.14"
Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What is sent for a path: all of it, its head too, or whatever a function writes."""


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {location}", status=status)


@dataclass
class Names:
    """A resolver. table: by host, the answers to successive look-ups, of which the last repeats; others are PUBLIC."""

    table: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        answers = self.table.get(host, [[PUBLIC]])
        times = self.asked.count(host)
        self.asked.append(host)
        found = answers[min(times, len(answers) - 1)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found


@dataclass
class Origin(httpcore.AsyncNetworkBackend):
    """Answers by path, and is the network that leads to it. connected: where to; asked: whole heads of requests.

    unreachable: addresses that refuse a connection.
    """

    answers: Mapping[str, Answer]
    unreachable: Sequence[str] = ()
    connected: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            sent = self.answers[head.split(" ")[1]]
            if callable(sent):
                await sent(writer)
            else:
                writer.write(sent)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked has seen enough
        finally:
            writer.close()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        assert (local_address, socket_options) == (None, None)
        self.connected.append((host, port))
        if host in self.unreachable:
            raise httpcore.ConnectError
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout)


def serving(**answers: Answer) -> Origin:
    """Answers by path, without the slash; a.png is there."""
    return Origin({f"/{path}": sent for path, sent in answers.items()} | {"/a.png": answer(b"a picture")})


def fetch(
    url: str, origin: Origin, names: Names | None = None, tls: ssl.SSLContext | None = None, **limits: float
) -> bytes:
    """What the server's fetcher gives for the URL. tls: the origin's; limits: settings of [serve]."""

    async def fetched() -> bytes:
        async with origin.listening(tls):
            trusting = ssl.create_default_context(cafile=CERTIFICATE)
            fetcher = PictureFetcher(ServeConfig(image_hosts=HOSTS, **limits), names or Names(), origin, trusting)
            return (await fetcher.fetch_all({url: "picture"}))[url]

    return asyncio.run(fetched())


def refusal(
    url: str, origin: Origin, names: Names | None = None, tls: ssl.SSLContext | None = None, **limits: float
) -> str:
    """What a client is told."""
    with pytest.raises(RequestError) as caught:
        fetch(url, origin, names, tls, **limits)
    assert (caught.value.status, caught.value.param) == (400, "picture")
    return str(caught.value)
