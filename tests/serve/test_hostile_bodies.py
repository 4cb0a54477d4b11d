"""Whatever a body holds, it is taken or refused, leaves no memory behind, and holds nobody up meanwhile."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator

import httpx
import pytest
from echo_engine import EchoEngine
from echo_server import Process, echo_server
from requests_to_send import JSON, user

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "echo", "messages": user("one")}).encode()
POSTS = (CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with echo_server(ServeConfig(port=0, max_body_mb=32)) as server:
        yield server


@pytest.mark.parametrize("coding", ["gzip", "identity, br", "zstd"])
def test_a_compressed_body_is_refused_and_not_unpacked(server: Process, coding: str) -> None:
    refused = httpx.post(f"{server.url}{CHAT}", content=BODY, headers=JSON | {"Content-Encoding": coding})
    assert refused.status_code == 415
    assert "Content-Encoding" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("deep", [b"[" * 10_000, b'{"a":' * 10_000, b'{"model":"echo","messages":' + b"[" * 10_000])
def test_deep_bodies_are_refused(server: Process, path: str, deep: bytes) -> None:
    assert httpx.post(f"{server.url}{path}", content=deep, headers=JSON).status_code == 400


def blanks(megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield b" " * 1_000_000


def test_bodies_of_a_hundred_megabytes_leave_nothing(server: Process) -> None:
    url, sizes = f"{server.url}{CHAT}", []
    for content in (
        b" " * 100_000_000,
        blanks(100),
        b'{"x":[' + b"[]," * 33_000_000 + b"1]}",
        blanks(100),
        blanks(100),
    ):
        assert httpx.post(url, content=content, headers=JSON, timeout=60).status_code == 413
        sizes.append(server.resident_mb)
    assert max(sizes[2:]) < sizes[0] + 80  # what one body takes, which the system may keep for the next


def entries(count: int, value: str) -> str:
    return "{" + ",".join(f'"{number}":{value}' for number in range(count)) + "}"


def listed(count: int, value: str) -> str:
    return "[" + ",".join([value] * count) + "]"


MANY: dict[str, tuple[str, str, int]] = {
    "biases": ("logit_bias", entries(99_000, "1"), 400),
    "a million biases": ("logit_bias", entries(1_000_000, "1"), 413),
    "stop tokens": ("stop_token_ids", listed(99_000, "1"), 200),
    "a million stop tokens": ("stop_token_ids", listed(1_000_000, "1"), 413),
    "no stop tokens": ("stop_token_ids", listed(99_000, "-1"), 400),
    "labels": ("metadata", entries(99_000, "1"), 400),
    "a long label": ("metadata", json.dumps({"a": "b" * 20_000_000}), 200),
    "long stops": ("stop", json.dumps(["a" * 1_000_000] * 4), 200),
    "no messages": ("messages", listed(49_000, '{"role":"x"}'), 400),
    "messages": ("messages", listed(33_000, '{"role":"user","content":"a"}'), 200),
    "100,000 messages": ("messages", listed(100_000, '{"role":"user","content":"a"}'), 413),
    "empty parts": ("messages", '[{"role":"user","content":' + listed(33_000, '{"type":"text"}') + "}]", 400),
    "100,000 parts": (
        *("messages", '[{"role":"user","content":' + listed(100_000, '{"type":"text","text":"a"}') + "}]"),
        413,
    ),
    "a long name": ("model", json.dumps("m" * 20_000_000), 404),
    "a long field": ("f" * 20_000_000, "1", 400),
    "a long number": ("max_tokens", "9" * 20_000_000, 400),
}


@pytest.mark.parametrize("case", MANY)
def test_no_body_holds_up_a_stream_that_goes_on(case: str) -> None:
    """Seconds of computing between two steps of the server's loop, which hands out every token."""
    field, value, expected = MANY[case]
    body = {"model": '"echo"', "messages": '[{"role":"user","content":"a"}]'} | {field: value}
    content = ("{" + ",".join(f'"{name}":{inner}' for name, inner in body.items()) + "}").encode()
    app = create_app(EchoEngine(), ServeConfig())
    pauses = []

    async def beat() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            pauses.append(now - last)
            last = now

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            beating = asyncio.create_task(beat())
            await asyncio.sleep(0.01)
            answer = await http.post(CHAT, content=content, headers=JSON)
            await asyncio.sleep(0.01)
            beating.cancel()
            return answer

    gc.freeze()  # as a server's process does once it is loaded
    try:
        answer = asyncio.run(ask())
    finally:
        gc.unfreeze()
    assert answer.status_code == expected, answer.text[:300]
    assert len(answer.text) < 500
    assert max(pauses) < 0.5


LITERALS: dict[str, tuple[str, str, int]] = {
    "the last of two keys": ("temperature", '5, "temperature": 1', 200),
    "the last of two keys is wrong": ("temperature", '1, "temperature": 5', 400),
    "too large a number": ("temperature", "1e400", 400),
    "minus zero": ("temperature", "-0", 200),
    "minus zero point": ("top_p", "-0.0", 200),
    "nearly zero": ("temperature", "5e-324", 200),
    "a number of 4000 digits": ("seed", "9" * 4000, 400),
    "half a character": ("user", '"\\ud800"', 400),
    "NUL": ("user", '"\\u0000"', 200),
    "from right to left": ("stop", '"\\u202e\\u200f"', 200),
    "a byte order mark in a name": ("\ufeffmodel", '"echo"', 400),
}


@pytest.mark.parametrize("case", LITERALS)
def test_odd_literals_are_taken_or_refused(server: Process, case: str) -> None:
    field, value, expected = LITERALS[case]
    content = f'{{"model":"echo","messages":[{{"role":"user","content":"a"}}],"{field}":{value}}}'.encode()
    assert httpx.post(f"{server.url}{CHAT}", content=content, headers=JSON).status_code == expected


@pytest.mark.parametrize("path", POSTS)
def test_a_byte_order_mark_is_no_json(server: Process, path: str) -> None:
    assert httpx.post(f"{server.url}{path}", content=b"\xef\xbb\xbf" + BODY, headers=JSON).status_code == 400
