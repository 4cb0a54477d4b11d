"""Whatever arrives at the socket, the server goes on, keeps its keys, and holds nobody up.

Bytes that are no request of ours, paths and hosts in other words, too many connections, and an end without notice. How
long a connection may take stands in test_connection.py, what bodies may hold in test_hostile_bodies.py.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from echo_engine import EchoEngine
from echo_server import Process, echo_server
from live_server import Serve
from requests_to_send import user

from slimdeploy.config import ServeConfig
from slimdeploy.serve import connections

KEY = "a" * 16
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "echo", "messages": user("one")}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"


def head(first: str, *lines: str, host: str = "Host: localhost") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = BODY) -> bytes:
    return head(f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", *lines) + body


def chunks(body: bytes = BODY, size: str | None = None) -> bytes:
    return f"{size or hex(len(body))[2:]}\r\n".encode() + body + b"\r\n0\r\n\r\n"


NO_REQUESTS: dict[str, bytes] = {
    "two lengths": post(LENGTH, "Content-Length: 5"),
    "a length and chunks": post(LENGTH, CHUNKED, body=chunks()),
    "a negative length": post("Content-Length: -1"),
    "a signed length": post("Content-Length: +5"),
    "an endless length": post("Content-Length: " + "9" * 5000),
    "another coding": post("Transfer-Encoding: xchunked", body=chunks()),
    "chunks not last": post("Transfer-Encoding: chunked, identity", body=chunks()),
    "compressed chunks": post("Transfer-Encoding: gzip, chunked", body=chunks()),
    "a chunk that is longer": post(CHUNKED, body=chunks(size="5")),
    "a negative chunk": post(CHUNKED, body=chunks(size="-5")),
    "a chunk in another base": post(CHUNKED, body=chunks(size="0x5")),
    "a huge chunk": post(CHUNKED, body=chunks(size="f" * 30)),
    "two hosts": head("GET / HTTP/1.1", "Host: evil.example"),
    "no host": head("GET / HTTP/1.1", host=""),
    "NUL in a host": head("GET / HTTP/1.1", host="Host: localhost\0evil.example"),
    "a blank before a colon": head("GET / HTTP/1.1", host="Host : localhost"),
    "a header without end": head("GET / HTTP/1.1")[:-2] + b"X: " + b"a" * 300_000,
    "no version": b"GET /\r\n\r\n",
    "no method": b"\r\n / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "zeros": bytes(1000) + b"\r\n\r\n",
}
ELSEWHERE = (
    "http://evil.example/",
    "http://localhost/health",
    "//v1/models",
    "//health",
    "/v1/../health",
    "/health/../v1/models",
    "/health/..%2fv1/models",
    "/%2e%2e/",
    "/health/",
    "/health%00",
    "/health%20",
    "/health;/v1/models",
    "/health#/v1/models",
    "/HEALTH",
    "/V1/models",
    "/v1%2fmodels",
    "/v1/models/",
    "/v1/models%00",
    "/v1/models/%ff",
    "/\\health",
    "*",
    "?",
    "/" + "a" * 15_000,
    "/%0d%0aX-Evil:1",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with echo_server(ServeConfig(port=0, max_body_mb=32)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"ann:{KEY}")
    with echo_server(ServeConfig(port=0, api_keys_file=str(file))) as server:
        yield server


def answer(server: Process, data: bytes, seconds: float = 10) -> bytes:
    """All that comes back until the server closes the connection, or falls silent."""
    received = b""
    with socket.create_connection(server.address, timeout=seconds) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
    return received


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


@pytest.mark.parametrize("case", NO_REQUESTS)
def test_what_is_no_request_is_400_in_openais_shape_and_ends_the_connection(server: Process, case: str) -> None:
    received = answer(server, NO_REQUESTS[case])
    assert received.count(b"HTTP/1.1 ") == 1
    assert status(received) == 400
    headers, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in headers.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("count", [1, 10_000])
def test_a_flood_of_headers_is_refused_or_passed_over(server: Process, count: int) -> None:
    lines = [f"X-{number}: {'a' * (100_000 // count)}" for number in range(count)]
    assert status(answer(server, head("GET /health HTTP/1.1", "Connection: close", *lines))) in (200, 400)
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "TRACE", "PUT", "CONNECT", "F~O"])
def test_no_words_for_a_path_get_round_the_keys(guarded: Process, path: str, method: str) -> None:
    received = answer(guarded, head(f"{method} {path} HTTP/1.1", "Connection: close"))
    assert status(received) == 401
    assert b"X-Evil" not in received.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("lines", [(), ("Authorization: Bearer x", f"Authorization: Bearer {KEY}")])
def test_the_first_of_two_keys_counts(guarded: Process, lines: tuple[str, ...]) -> None:
    assert status(answer(guarded, head("GET /v1/models HTTP/1.1", "Connection: close", *lines))) == 401


@pytest.mark.parametrize(
    "host",
    ["localhost@evil.example", "localhost evil.example", "localhost, evil.example", "localhost:", "localhost:80x"],
)
def test_a_host_that_only_begins_like_ours_is_refused(server: Process, host: str) -> None:
    assert status(answer(server, head("GET /health HTTP/1.1", "Connection: close", host=f"Host: {host}"))) == 403


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "é", "x" * 10_000])
def test_odd_hosts_break_no_server_of_a_network(serve: Serve, host: str) -> None:
    url = serve(EchoEngine(), ServeConfig(host="0.0.0.0"))
    for path, expected in (("/health", 200), ("/nowhere", 404)):
        assert httpx.get(f"{url}{path}", headers={"Host": host.encode()}).status_code == expected


def test_who_waits_for_a_word_before_the_body_gets_it_or_the_refusal(server: Process, guarded: Process) -> None:
    expecting = post(LENGTH, "Connection: close", "Expect: 100-continue")
    assert answer(server, expecting).startswith(b"HTTP/1.1 100 ")
    assert status(answer(guarded, expecting[: -len(BODY)])) == 401


def test_whoever_asks_with_methods_of_their_own_leaves_no_series_behind(server: Process) -> None:
    with httpx.Client(base_url=server.url) as http:
        for number in range(50):
            assert http.request(f"M{number}", "/health").status_code == 405
        figures = http.get("/metrics").text
    assert "M49" not in figures
    assert 'http_request_method="_OTHER"' in figures


def test_connections_beyond_the_bound_are_closed_and_places_come_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 20)
    url = serve(EchoEngine())
    parts = httpx.URL(url)
    silent = [socket.create_connection((parts.host, parts.port or 0)) for _ in range(20)]
    time.sleep(0.2)
    with socket.create_connection((parts.host, parts.port or 0)) as late:
        late.settimeout(5)
        with suppress(ConnectionResetError):
            assert late.recv(1000) == b""
    for connection in silent:
        connection.close()
    time.sleep(0.2)
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_server_that_is_killed_leaves_no_client_waiting_and_its_port_to_the_next() -> None:
    with echo_server(ServeConfig(port=0), seconds_per_token=0.05) as first:
        port = first.address[1]
        body = {"model": "echo", "messages": user("word " * 1000), "stream": True}
        with httpx.stream("POST", f"{first.url}{CHAT}", json=body, timeout=10) as response:
            pieces = response.iter_raw()
            next(pieces)
            threading.Timer(0.2, first.child.kill).start()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
    start = time.monotonic()
    with echo_server(ServeConfig(port=port)) as second:
        assert second.url == first.url
        assert httpx.get(f"{second.url}/health").status_code == 200
    assert time.monotonic() - start < 60
