"""No wait for the other side is without an end, and what is no HTTP gets an error, or nothing; never a trace."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import user
from soak_answers import require_error
from soak_wire import BrokenOffError, Connection, head_of

from slimdeploy.config import ServeConfig
from slimdeploy.serve import connections

PATH = "/v1/chat/completions"
JSON = {"Content_Type": "application/json"}
BODY = json.dumps({"model": "echo", "messages": user("one two")}).encode()


def on_a_connection(url: str, act: Callable[[Connection], Coroutine[Any, Any, Any]], buffer: int | None = None) -> Any:
    async def run() -> Any:
        connection = await Connection.open(httpx.URL(url).port or 0, buffer)
        try:
            async with asyncio.timeout(10):
                return await act(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.fixture
def no_trace(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("said", [b"", b"G", head_of("GET", "/health")[:-2]])
def test_who_says_nothing_or_half_a_head_is_let_go(url: str, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_FOR_A_HEAD", 0.2)

    async def act(connection: Connection) -> bytes:
        await connection.send(said)
        return await connection.closed_by_server()

    assert on_a_connection(url, act) == b""


def test_a_head_that_comes_letter_by_letter_has_no_more_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_FOR_A_HEAD", 0.3)

    async def act(connection: Connection) -> None:
        assert (await _asked(connection)) == 200  # one that went before changes nothing
        with pytest.raises(BrokenOffError):
            await connection.send(head_of("GET", "/health", X="y" * 5000), piece=1, pause=0.05)

    async def _asked(connection: Connection) -> int:
        await connection.send(head_of("POST", PATH, len(BODY), **JSON) + BODY)
        return (await connection.response()).status

    on_a_connection(url, act)


def test_what_takes_longer_than_a_head_is_not_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_FOR_A_HEAD", 0.2)
    url = serve(EchoEngine(seconds_per_token=0.3))

    async def act(connection: Connection) -> list[int]:
        statuses = []
        for _ in range(2):  # a body that takes its time, an answer that does, and a rest between two requests
            await connection.send(head_of("POST", PATH, len(BODY), **JSON))
            await connection.send(BODY, piece=len(BODY) // 3, pause=0.15)
            statuses.append((await connection.response()).status)
            await asyncio.sleep(0.4)
        return statuses

    assert on_a_connection(url, act) == [200, 200]


def test_a_body_without_an_end_behind_an_answer_is_let_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_FOR_A_HEAD", 0.3)

    async def act(connection: Connection) -> None:
        await connection.send(head_of("POST", PATH, 10**12, **JSON))
        assert (await connection.response()).status == 413
        with pytest.raises(BrokenOffError):
            await connection.send(b"x" * 1000, piece=1, pause=0.02)

    on_a_connection(url, act)


def test_who_reads_nothing_of_an_answer_frees_his_place(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_TO_READ", 1.0)
    url = serve(engine := EchoEngine(), ServeConfig(max_tokens=10**6, concurrency=1, max_waiting=0))
    body = json.dumps({"model": "echo", "messages": user("word " * 30_000), "stream": True}).encode()

    async def act(connection: Connection) -> list[int]:
        statuses: list[int] = []
        async with httpx.AsyncClient() as others:
            await connection.send(head_of("POST", PATH, len(body), **JSON) + body)
            await connection.head()
            while 200 not in statuses:
                await asyncio.sleep(0.1)
                answer = await others.post(url + PATH, content=BODY, headers={"Content-Type": "application/json"})
                statuses.append(answer.status_code)
        with pytest.raises(BrokenOffError):
            await connection.response()
        return statuses

    assert on_a_connection(url, act, buffer=2048)[0] == 429
    assert engine.running == 0


def test_who_leaves_the_end_of_an_answer_unread_is_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little of it is left to pause writing: here no answer is large enough for that."""
    made = connections.Connection.connection_made

    def never_paused(self: connections.Connection, transport: asyncio.Transport) -> None:
        made(self, transport)
        transport.set_write_buffer_limits(1 << 30)

    monkeypatch.setattr(connections.Connection, "connection_made", never_paused)
    monkeypatch.setattr(connections, "_SECONDS_TO_READ", 0.3)
    url = serve(EchoEngine())
    body = json.dumps({"model": "echo", "messages": user("x" * 4_000_000 + " end"), "n": 4}).encode()

    async def act(connection: Connection) -> None:
        await connection.send(head_of("POST", PATH, len(body), Connection="close", **JSON) + body)
        head = await connection.head()
        await asyncio.sleep(1)
        with pytest.raises(BrokenOffError):
            _ = [piece async for piece in connection.body(head)]

    on_a_connection(url, act, buffer=2048)


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"a" * 200_000,
        head_of("POST", PATH, "many", **JSON),
        head_of("POST", PATH, Transfer_Encoding="chunked", **JSON) + b"zz\r\n",
        head_of("POST", PATH, Transfer_Encoding="chunked", **JSON) + b"5\r\nhello\r\n-1\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_of_openais_shape(url: str, said: bytes) -> None:
    async def act(connection: Connection) -> int:
        await connection.send(said)
        response = await connection.response()
        require_error(response)
        assert await connection.closed_by_server() == b""
        return response.status

    assert on_a_connection(url, act) == 400


@pytest.mark.usefixtures("no_trace")
def test_what_is_no_http_behind_an_answer_ends_the_connection(url: str) -> None:
    async def act(connection: Connection) -> None:
        await connection.send(head_of("POST", PATH, Transfer_Encoding="chunked"))
        assert (await connection.response()).status == 415
        await connection.send(b"zz\r\n")
        assert await connection.closed_by_server() == b""

    on_a_connection(url, act)


@pytest.mark.usefixtures("no_trace")
def test_a_connection_cannot_become_another_protocol(url: str) -> None:
    async def act(connection: Connection) -> int:
        await connection.send(head_of("GET", "/health", Connection="Upgrade", Upgrade="websocket"))
        return (await connection.response()).status

    assert on_a_connection(url, act) == 200
