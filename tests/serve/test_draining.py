"""Told to stop, the server takes nothing new and lets what it has begun come to its end, for so long and no longer."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from requests_to_send import JSON, user
from test_app import until

from slimdeploy.config import ServeConfig

PATH = "/v1/chat/completions"
WORDS = 40
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from echo_engine import EchoEngine
from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.request_log import start_log
from slimdeploy.serve.server import Server, listen, url_of
config, engine = ServeConfig.model_validate_json(sys.argv[2]), EchoEngine(seconds_per_token=0.05)
start_log("text")
listener = listen(config)
server = Server(create_app(engine, config), engine, config, lambda: print(url_of(listener), flush=True))
server.run(sockets=[listener])
"""


@dataclass(frozen=True)
class Served:
    """An echo of twenty words a second, in a process of its own."""

    url: str
    process: "subprocess.Popen[str]"

    def told_to_stop(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)
        until(lambda: httpx.get(f"{self.url}/ready").status_code == 503)

    def ended(self, seconds: float = 10) -> str:
        """What it wrote, once it has ended by the signal that it was sent."""
        _, errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == -signal.SIGTERM, errors
        assert "Traceback" not in errors
        return errors


@contextmanager
def served(**settings: Any) -> Iterator[Served]:
    config = ServeConfig(port=0, **settings).model_dump_json()
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Served(process.stdout.readline().strip(), process)
        finally:
            process.kill()


class Stream(threading.Thread):
    """A stream of many words, as it comes. body: what came of it by now."""

    def __init__(self, url: str, path: str = PATH, **more: Any) -> None:
        super().__init__()
        self.body = ""
        self.is_whole = False
        self._url = f"{url}{path}"
        self._request = {"model": "echo", "stream": True} | more
        self.start()
        until(lambda: bool(self.body))

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._request, timeout=20) as response:
            for text in response.iter_text():
                self.body += text
        self.is_whole = True

    def ended(self) -> str:
        """The data of its last event. httpx raises where a connection is cut, and then it is never whole."""
        self.join(20)
        assert self.is_whole
        return self.body.strip().rpartition("data: ")[2]


def chat(words: int) -> dict[str, Any]:
    return {"messages": user("word " * words + "end")}


def test_what_runs_comes_to_its_end_and_what_is_new_is_told_to_come_again() -> None:
    with served(drain_s=20) as server:
        stream = Stream(server.url, **chat(WORDS))
        server.told_to_stop()
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(f"{server.url}{PATH}", json={"model": "echo"} | chat(1))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "shutting down" in refused.json()["error"]["message"]
        assert stream.ended() == "[DONE]"
        assert stream.body.count('"content":" word"') == WORDS - 1
        assert "stopping: 1 requests have up to 20 s" in server.ended()


@pytest.mark.parametrize("path", [PATH, "/v1/responses"])
def test_what_runs_too_long_ends_with_an_error_that_its_client_reads(path: str) -> None:
    said = chat(1000) if path == PATH else {"input": "word " * 1000}
    with served(drain_s=0.5) as server:
        stream = Stream(server.url, path, **said)
        start = time.monotonic()
        server.told_to_stop()
        last = json.loads(stream.ended())
        server.ended()
        assert 0.3 < time.monotonic() - start < 8
    error = last["error"] if path == PATH else last["response"]["error"]
    assert "shutting down" in error["message"]


class Waiting(threading.Thread):
    """A question that waits in line behind a stream. found: what it was answered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.found: httpx.Response | None = None
        self._url = url
        self.start()
        until(lambda: 'num_requests_waiting{model_name="echo"} 1.0' in httpx.get(f"{url}/metrics").text)

    def run(self) -> None:
        self.found = httpx.post(f"{self._url}{PATH}", json={"model": "echo"} | chat(1), timeout=20)

    def answer(self) -> httpx.Response:
        self.join(20)
        assert self.found is not None
        return self.found


def test_who_waits_when_the_server_is_stopped_is_answered_as_well() -> None:
    with served(drain_s=20, concurrency=1) as server:
        first, waiting = Stream(server.url, **chat(WORDS)), Waiting(server.url)
        server.told_to_stop()
        assert waiting.answer().json()["choices"][0]["message"]["content"] == "word end"
        assert first.ended() == "[DONE]"
        server.ended()


def test_who_still_waits_when_time_is_up_is_told_so() -> None:
    with served(drain_s=0.5, concurrency=1) as server:
        first, waiting = Stream(server.url, **chat(1000)), Waiting(server.url)
        server.told_to_stop()
        assert waiting.answer().status_code == 503
        assert "error" in json.loads(first.ended())
        server.ended()


def test_a_second_signal_ends_at_once() -> None:
    with served(drain_s=60) as server:
        stream = Stream(server.url, **chat(1000))
        server.told_to_stop()
        start = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        server.ended()
        assert time.monotonic() - start < 4
        assert "error" in json.loads(stream.ended())


def test_a_server_that_nobody_asks_stops_at_once_though_connections_are_open() -> None:
    with served(drain_s=60) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/health").status_code == 200
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as silent:
            silent.sendall(b"GET /health HTT")
            start = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            server.ended()
            assert time.monotonic() - start < 4


def test_a_body_that_is_still_coming_does_not_hold_the_server_longer_than_it_may() -> None:
    with served(drain_s=0.5) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as slow:
            slow.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n".encode())
            slow.sendall("".join(f"{name}: {value}\r\n" for name, value in JSON.items()).encode() + b"\r\n{")
            until(lambda: "} 0.0" in httpx.get(f"{server.url}/metrics").text)
            server.told_to_stop()
            start = time.monotonic()
            server.ended()
            assert time.monotonic() - start < 8
