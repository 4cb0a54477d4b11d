"""Clients of the soak: those who ask as they should, and all the others.

Each does one thing after the other until its time is up, at its own random choice; none waits without an end.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from soak_answers import WrongError, outcome, require_error
from soak_probe import TIE, Chosen, lead_where_they_part, probes, tokens_of
from soak_requests import Ask, nonsense, question
from soak_wire import BrokenOffError, Connection, Head, Response, head_of

PATIENCE = 60.0
"""Seconds for one exchange; who waits longer is lost."""
SHARED_KEY = "key-of-several-clients"
_SMALL_BUFFER = 2048
_OPEN_ROUTES = frozenset({"/", "/health", "/ready"})


@dataclass
class Soak:
    """What all clients share. outcomes: how often, by kind of client and what came of it. lost: what must not be.

    ties: leads of greedy tokens that another one took the place of. right: answers to probes, asked alone.
    """

    port: int
    seed: int
    end: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    ties: list[float] = field(default_factory=list)
    right: dict[Ask, list[Chosen]] = field(default_factory=dict)


class Client:
    """One of them. kind: of its behaviour, which `act` is."""

    def __init__(self, soak: Soak, kind: str, number: int) -> None:
        self.soak = soak
        self.kind = kind
        self.rng = random.Random(f"{soak.seed} {kind} {number}")
        self.key = SHARED_KEY if kind == "shares a key" else f"key-of-client-{kind.replace(' ', '-')}-{number}"
        self._kept: Connection | None = None

    async def run(self, act: "Act") -> None:
        while time.monotonic() < self.soak.end:
            try:
                async with asyncio.timeout(PATIENCE):
                    came = await act(self)
                self.soak.outcomes[self.kind, came] += 1
            except TimeoutError:
                await self._lose(f"no answer within {PATIENCE:g} s")
            except (BrokenOffError, WrongError, ValueError, LookupError) as error:
                await self._lose(f"{type(error).__name__}: {error}")
            await asyncio.sleep(self.rng.random() * 0.1)
        await self.hang_up()

    async def _lose(self, why: str) -> None:
        self.soak.outcomes[self.kind, "LOST"] += 1
        self.soak.lost.append(f"a client that {self.kind}: {why}")
        await self.hang_up()

    async def connection(self) -> Connection:
        """The one of the exchange before, where it is still open."""
        if self._kept is None or not self._kept.is_open:
            await self.hang_up()
            self._kept = await Connection.open(self.soak.port)
        return self._kept

    async def hang_up(self) -> None:
        if self._kept is not None:
            await self._kept.close()
            self._kept = None

    def head(self, ask: Ask) -> bytes:
        return head_of("POST", ask.path, len(ask.body), Content_Type="application/json", **self.authorization)

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    async def ask(self, ask: Ask, piece: int = 1 << 20, pause: float = 0.0) -> Response:
        connection = await self.connection()
        await connection.send(self.head(ask) + ask.body, piece, pause)
        return await connection.response()


Act = Callable[[Client], Awaitable[str]]
"""One exchange, or what a client takes for one; says what came of it."""


async def asks(client: Client) -> str:
    ask = question(client.rng)
    return outcome(ask, await client.ask(ask))


async def sends_nonsense(client: Client) -> str:
    """And a good question right behind it, on the same connection."""
    ask = nonsense(client.rng)
    came = outcome(ask, await client.ask(ask))
    await asks(client)
    return came


async def writes_slowly(client: Client) -> str:
    ask = question(client.rng)
    pieces = client.rng.randint(2, 12)
    piece = len(ask.body) // pieces + 1
    return outcome(ask, await client.ask(ask, piece, client.rng.random() * 2 / pieces))


async def reads_slowly(client: Client) -> str:
    """A few bytes now and then, for some seconds; then the rest at once."""
    ask, rng = question(client.rng), client.rng
    connection = await Connection.open(client.soak.port, _SMALL_BUFFER)
    try:
        await connection.send(client.head(ask) + ask.body)
        head = await connection.head()
        hurry = time.monotonic() + rng.random() * 6
        body = b""
        async for part in connection.body(head, piece=64):
            body += part
            if time.monotonic() < hurry:
                await asyncio.sleep(rng.random() * 0.3)
        return outcome(ask, Response(head.status, head.headers, body))
    finally:
        await connection.close()


async def leaves(client: Client) -> str:
    """Before its body is sent, within it, while it waits, or between two tokens; in good order or not."""
    ask, rng = question(client.rng), client.rng
    connection = await Connection.open(client.soak.port)
    try:
        moment = rng.choice(("before the body", "within the body", "waiting", "between tokens"))
        head = client.head(ask)
        match moment:
            case "before the body":
                await connection.send(head)
                await asyncio.sleep(rng.random() * 0.2)
            case "within the body":
                await connection.send(head + ask.body[: rng.randrange(len(ask.body))])
                await asyncio.sleep(rng.random() * 0.2)
            case "waiting":
                await connection.send(head + ask.body)
                await asyncio.sleep(rng.random() * 0.5)
            case "between tokens":
                await connection.send(head + ask.body)
                await _some(connection, await connection.head(), rng)
        return f"left {moment}"
    finally:
        if rng.random() < 0.5:
            connection.reset()
        await connection.close()


async def _some(connection: Connection, head: Head, rng: random.Random) -> None:
    """Of a response."""
    left = rng.randrange(3000)
    async for part in connection.body(head, piece=200):
        left -= len(part)
        if left < 0:
            return


async def says_nothing(client: Client) -> str:
    """Or stops in the middle of a head, or of a body, and holds the connection."""
    ask, rng = question(client.rng), client.rng
    connection = await Connection.open(client.soak.port)
    try:
        head = client.head(ask)
        said = rng.choice((b"", head[: rng.randrange(len(head))], head[:-2], head + ask.body[:5]))
        await connection.send(said)
        await asyncio.sleep(rng.random() * 2)
        return "held a connection"
    finally:
        if rng.random() < 0.5:
            connection.reset()
        await connection.close()


async def breaks_http(client: Client) -> str:
    """It gets an error, or its connection is closed; no one else notices."""
    rng = client.rng
    chunked = head_of("POST", "/v1/chat/completions", Transfer_Encoding="chunked", **client.authorization)
    typed = head_of("POST", "/v1/chat/completions", Transfer_Encoding="chunked", Content_Type="application/json")
    said = rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            head_of("GET", "/health", **{f"X-{number}": "v" * 100 for number in range(1000)}),
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            head_of("POST", "/v1/chat/completions", length="many", **client.authorization),
            chunked + b"zz\r\n",
            chunked + b"5\r\nhello\r\nzz\r\n",
            typed + b"5\r\nhello\r\n-1\r\n",
        )
    )
    connection = await Connection.open(client.soak.port)
    try:
        await connection.send(said)
        response = await connection.response()
    except BrokenOffError:
        return "closed"
    finally:
        await connection.close()
    if response.status == 200:  # to a long head that came at once
        return "answered 200"
    if response.status not in (400, 401, 403, 415, 429):
        raise WrongError(f"{said[:80]!r} is answered {response.status}: {response.body[:200]!r}")
    require_error(response)
    return f"refused {response.status}"


async def looks_around(client: Client) -> str:
    """At all other routes, with a key or without, several requests on one connection."""
    rng, allowed = client.rng, {200}
    path = rng.choice(
        ("/", "/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/v1/nothing", "/v1/models/x")
    )
    if path in ("/v1/nothing", "/v1/models/x"):
        allowed = {404}
    key = client.authorization
    if rng.random() < 0.2:
        key = rng.choice(({}, {"Authorization": "Bearer no-key-of-this-server"}))
        allowed = allowed if path in _OPEN_ROUTES else {401}
    connection = await client.connection()
    await connection.send(head_of("GET", path, **key))
    response = await connection.response()
    if response.status not in allowed:
        raise WrongError(f"GET {path} is answered {response.status}")
    return f"answered {response.status}"


async def counts_tokens(client: Client) -> str:
    connection = await client.connection()
    words = "x" * client.rng.randint(1, 2000)
    body = f'{{"prompt": "{words}"}}'.encode()
    head = head_of("POST", "/tokenize", len(body), Content_Type="application/json", **client.authorization)
    await connection.send(head + body)
    response = await connection.response()
    if response.status not in (200, 429):
        raise WrongError(f"/tokenize is answered {response.status}: {response.body[:200]!r}")
    return "answered" if response.status == 200 else "refused 429"


async def pipelines(client: Client) -> str:
    """Two questions at once on one connection, which are answered in their order."""
    both = [question(client.rng), question(client.rng)]
    connection = await client.connection()
    await connection.send(b"".join(client.head(ask) + ask.body for ask in both))
    came = [outcome(ask, await connection.response()) for ask in both]
    return came[1]


async def probe(client: Client) -> str:
    """One of the questions whose answers are known; it asks until it is answered."""
    ask = client.rng.choice(list(client.soak.right) or probes())
    while (came := outcome(ask, response := await client.ask(ask))) != "answered":
        await asyncio.sleep(0.2)
    right = client.soak.right.get(ask)
    if right is None or (lead := lead_where_they_part(right, tokens_of(ask, response))) is None:
        return came
    client.soak.ties.append(lead)
    if lead > TIE:
        raise WrongError(f"a greedy answer changed where its token led by {lead:.4f}: {ask.body[:200]!r}")
    return "answered, with a tie"


KINDS: dict[str, tuple[int, Act]] = {
    "asks": (8, asks),
    "shares a key": (3, asks),
    "sends nonsense": (4, sends_nonsense),
    "writes slowly": (1, writes_slowly),
    "reads slowly": (3, reads_slowly),
    "leaves": (4, leaves),
    "says nothing": (2, says_nothing),
    "breaks HTTP": (1, breaks_http),
    "looks around": (2, looks_around),
    "counts tokens": (1, counts_tokens),
    "pipelines": (1, pipelines),
    "probe": (2, probe),
}
"""How many clients there are of each kind, and what they do."""
