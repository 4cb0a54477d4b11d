"""Pictures that a request names by URL, fetched from the hosts of `serve.image_hosts` and from no others.

Whoever may ask could otherwise send this server to what only it can reach: its own machine, its network, its cloud's
metadata. So one parser reads a URL, a name is resolved once, all its addresses must be public, and the connection goes
to these and nowhere else; redirects are followed by hand, each judged like the first. What a picture is, its bytes tell
later (`media`): nothing that the other server says of them is believed.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import httpcore
import httpx

from slimdeploy.config import ServeConfig
from slimdeploy.config_table import HOST_NAME

from .addresses import is_public
from .engine import RequestError

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, by its name and port; raises OSError where there are none."""

_AT_ONCE = 16
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
# What one parser takes for a part of a host and another for its end.
_AMBIGUOUS = re.compile(r"[\s\\\x00-\x1f\x7f]")
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/png, image/jpeg, image/webp, image/gif",
    "Accept-Encoding": "identity",
    "User-Agent": "slimdeploy",
}
_FAULTS = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


class _NotFetchedError(Exception):
    """Why, for the server's log alone: told to clients, it would map the network behind the server for them."""


class _TooLargeError(Exception):
    """What stands after the picture's name in the client's error."""


@dataclass
class _Allowance:
    """Bytes that the pictures of one request may take together."""

    left: int

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _TooLargeError("and the pictures fetched beside it are larger than the body of a request may be")


class SystemResolver:
    """Asks the operating system, in threads of its own: a name server that is slow must not hold up other work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> list[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [str(info[4][0]) for info in found]


@dataclass(frozen=True)
class PictureFetcher:
    """Several requests may fetch at the same time. resolve and network: what finds hosts and what connects."""

    config: ServeConfig
    resolve: Resolve = field(default_factory=SystemResolver)
    network: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)
    tls: ssl.SSLContext = field(default_factory=partial(httpx.create_ssl_context, trust_env=False))
    _places: asyncio.Semaphore = field(default_factory=partial(asyncio.Semaphore, _AT_ONCE))

    async def fetch_all(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        """The pictures by their URLs, side by side. urls: for each the request's field that holds it.

        Raises RequestError that names the field, about the first fault; the other pictures are then given up.
        """
        allowance = _Allowance(int(self.config.max_body_mb * 1e6))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(self._fetch(url, param, allowance)) for url, param in urls.items()}
        except BaseExceptionGroup as faults:
            raise faults.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def _fetch(self, url: str, param: str, allowance: _Allowance) -> bytes:
        target = _listed(url, self.config.image_hosts)
        if target is None:
            raise RequestError(
                f"'{param}' is not at one of the hosts from which this server fetches pictures; send the picture "
                "itself, as a data: URL",
                param=param,
            )
        try:
            async with self._places, asyncio.timeout(self.config.image_timeout_s):
                return await self._followed(target, allowance)
        except _TooLargeError as error:
            raise RequestError(f"'{param}' {error}", param=param) from None
        except (_NotFetchedError, *_FAULTS) as error:
            reason = str(error) if isinstance(error, _NotFetchedError) else type(error).__name__
            log.info("a picture was not fetched: %s", reason)
            raise RequestError(
                f"'{param}' could not be fetched; send the picture itself, as a data: URL", param=param
            ) from None

    async def _followed(self, url: httpx.URL, allowance: _Allowance) -> bytes:
        for _ in range(1 + _REDIRECTS):
            answer = await self._answer(url, allowance)
            if isinstance(answer, bytes):
                return answer
            url = _redirected(url, answer, self.config.image_hosts)
        raise _NotFetchedError(f"it was redirected more than {_REDIRECTS} times")

    async def _answer(self, url: httpx.URL, allowance: _Allowance) -> bytes | str:
        """The picture, or where it is said to be instead."""
        addresses = await self.resolve(url.raw_host.decode("ascii"), _port(url))
        if not addresses or not all(map(is_public, addresses)):
            raise _NotFetchedError("its host has an address that is not public")
        network = _OnlyTo(tuple(addresses), self.network, self.config.image_timeout_s)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self.tls, network_backend=network) as pool,
            pool.stream("GET", target, headers=_HEADERS) as response,
        ):
            headers = httpx.Headers(response.headers)
            if 300 <= response.status < 400 and "location" in headers:
                return headers["location"]
            if response.status != httpx.codes.OK:
                raise _NotFetchedError(f"it was answered with status {response.status}")
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise _NotFetchedError("it was compressed on the way, which was not asked for")
            return await self._body(response, allowance)

    async def _body(self, response: httpcore.Response, allowance: _Allowance) -> bytes:
        most = int(self.config.max_image_mb * 1e6)
        too_large = _TooLargeError(f"is larger than the {self.config.max_image_mb:g} MB that are taken")
        if int(httpx.Headers(response.headers).get("content-length", "0")) > most:
            raise too_large
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) > most:
                raise too_large
            allowance.take(len(piece))
        return bytes(body)


@dataclass(frozen=True)
class _OnlyTo(httpcore.AsyncNetworkBackend):
    """Connects to the first of these addresses that answers, whatever name it is given."""

    addresses: tuple[str, ...]
    network: httpcore.AsyncNetworkBackend
    timeout_s: float

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the point of it
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        fault: Exception | None = None
        timeout = self.timeout_s / len(self.addresses)
        for address in self.addresses:
            try:
                return await self.network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        assert fault is not None
        raise fault


def _listed(text: str, hosts: Sequence[str]) -> httpx.URL | None:
    """The URL that is asked and connected to; None where it is none, or none of a listed host."""
    if _AMBIGUOUS.search(text):
        return None
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None
    host = url.raw_host.decode("ascii")
    if url.scheme not in _PORTS or url.userinfo or not HOST_NAME.fullmatch(host):
        return None
    return url if any(_is_of(entry, url.scheme, host, _port(url)) for entry in hosts) else None


def _is_of(entry: str, scheme: str, host: str, port: int) -> bool:
    name, _, listed_port = entry.partition(":")
    same_name = host.endswith(name[1:]) if name.startswith("*.") else host == name
    return same_name and port == int(listed_port or _PORTS[scheme])


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else _PORTS[url.scheme]


def _redirected(url: httpx.URL, location: str, hosts: Sequence[str]) -> httpx.URL:
    try:
        target = None if _AMBIGUOUS.search(location) else _listed(str(url.join(location)), hosts)
    except (httpx.InvalidURL, ValueError):
        target = None
    if target is None:
        raise _NotFetchedError("it was redirected to a host that serve.image_hosts does not list")
    return target
