"""Who comes in, decided before a body is read: whoever has a key, where keys are asked for, and
tokens left, while the line has places. Whether the line has room for a body is decided as it comes.

Pages of other web sites stay outside: a browser on this machine must not lend itself to strangers (DNS rebinding),
which is all that protects a server without keys.
"""

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .engine import RequestError
from .keys import Keys
from .line import Line
from .quota import Quota
from .refusals import refusal
from .request_log import note_of

# Open to all, by these very paths: the page asks for the key, and what keeps a server running has none.
_OPEN = frozenset({"/", "/health", "/ready"})
_NAMES_OF_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Keys, quota: Quota, line: Line) -> None:
        self._app = app
        self._keys = keys
        self._hosts = _NAMES_OF_THIS_MACHINE | {config.host.lower()} if is_loopback(config.host) else None
        self._quota = quota
        self._line = line
        self._max_body = int(config.max_body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            message = f"this server is reached as localhost, not as '{host[:100]}'; set serve.host to serve a network"
            await refusal(RequestError(message, status=403))(scope, receive, send)
        elif "content-length" in headers and "transfer-encoding" in headers:
            # A proxy in front may go by the other one: what follows on this connection is nobody's request.
            answer = refusal(RequestError("the request has a Content-Length and a Transfer-Encoding; send one of them"))
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
        elif self._keys and scope["path"] not in _OPEN and not self._knows(scope):
            message = "this server asks for an API key, and none of its own was sent; send 'Authorization: Bearer KEY'"
            await refusal(RequestError(message, status=401, code="invalid_api_key"))(scope, receive, send)
        elif scope["method"] == "POST":
            await self._in_line(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether who asks has a key, whose name is noted."""
        name = self._keys.name_of(Headers(scope=scope).get("authorization", ""))
        note_of(scope).key = name or ""
        return name is not None

    async def _in_line(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The place is held until the last byte of the answer is sent, streams included."""
        try:
            self._quota.check(note_of(scope).key)
            self._line.enter()
        except (RequestError, ServeError) as error:
            await refusal(error)(scope, receive, send)
            return
        held = 0

        async def weighed() -> Message:
            """What is beyond the limit of a body is thrown away as it comes."""
            nonlocal held
            message = await receive()
            more = min(len(message.get("body", b"")), self._max_body - held)
            self._line.hold(more)
            held += more
            return message

        try:
            await self._app(scope, weighed, send)
        finally:
            self._line.leave(held)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _without_port(host: str) -> str:
    """A colon inside brackets belongs to an IPv6 address."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()
