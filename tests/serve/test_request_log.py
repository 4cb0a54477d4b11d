"""Every request leaves one line with figures and without content, under the id that its client is told."""

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import user

from slimdeploy.config import ServeConfig
from slimdeploy.serve.request_log import JsonLines

SECRET = "my secret question"
BODY = {"model": "echo", "messages": user(SECRET)}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("slimdeploy")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def last(lines: io.StringIO) -> dict[str, object]:
    """Written once the answer is sent, so perhaps a moment later."""
    for _ in range(50):
        if text := lines.getvalue().strip():
            line: dict[str, object] = json.loads(text.splitlines()[-1])
            return line
        time.sleep(0.02)
    pytest.fail("nothing was logged")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_leaves_its_figures(url: str, lines: io.StringIO, stream: bool) -> None:
    response = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"stream": stream, "n": 2})
    line = last(lines)
    assert line["id"] == response.headers["x-request-id"]
    assert (line["request"], line["status"]) == ("POST /v1/chat/completions", 200)
    figures = ("prompt_tokens", "cached_tokens", "completion_tokens", "finish")
    assert [line[name] for name in figures] == [3, 2, 6, "stop,stop"]
    assert 0 <= float(str(line["first_token_ms"])) <= float(str(line["total_ms"])) < 10_000
    assert len(lines.getvalue().strip().splitlines()) == 1
    assert "secret" not in lines.getvalue()


def test_a_client_may_name_its_request(url: str, lines: io.StringIO) -> None:
    response = httpx.get(f"{url}/v1/models", headers={"X-Request-Id": "my-request.7"})
    assert response.headers["x-request-id"] == last(lines)["id"] == "my-request.7"


@pytest.mark.parametrize("asked", ["", "a b", "x" * 65, "a\tb", "é"])
def test_a_name_that_might_forge_a_line_is_not_taken(url: str, lines: io.StringIO, asked: str) -> None:
    response = httpx.get(f"{url}/v1/models", headers={"X-Request-Id": asked.encode()})
    assert response.headers["x-request-id"] == last(lines)["id"] != asked


def test_what_is_refused_says_so_and_by_whom_it_was_asked(serve: Serve, lines: io.StringIO, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ann:{'a' * 16}")
    url = serve(EchoEngine(), ServeConfig(api_keys_file=str(tmp_path / "keys")))
    httpx.post(f"{url}/v1/chat/completions", json=BODY)
    assert last(lines)["status"] == 401
    assert "key" not in last(lines)
    lines.truncate(0)
    lines.seek(0)
    httpx.post(f"{url}/v1/chat/completions", json={"nothing": SECRET}, headers={"Authorization": f"Bearer {'a' * 16}"})
    assert (last(lines)["status"], last(lines)["key"]) == (400, "ann")
    assert "secret" not in lines.getvalue()
    assert "a" * 16 not in lines.getvalue()


def test_a_client_that_leaves_is_unfinished(serve: Serve, lines: io.StringIO) -> None:
    url = serve(EchoEngine(seconds_per_token=0.1))
    body = BODY | {"messages": user("word " * 100), "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        next(response.iter_raw())
        time.sleep(0.3)
    line = last(lines)
    assert line["finish"] == "unfinished"
    assert 0 < int(str(line["completion_tokens"])) < 20


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_what_asks_all_the_time_leaves_no_line(url: str, lines: io.StringIO, path: str) -> None:
    httpx.get(f"{url}{path}")
    httpx.get(f"{url}/v1/models")
    last(lines)
    assert path not in lines.getvalue()


def test_a_path_cannot_forge_a_line(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slimdeploy")
    httpx.get(f"{url}/a%0Aid=b%20status=200")
    time.sleep(0.1)
    (record,) = [record for record in caplog.records if "status=404" in record.getMessage()]
    assert "\n" not in record.getMessage()


def test_errors_in_json_have_their_trace(lines: io.StringIO) -> None:
    try:
        raise OSError("broken")
    except OSError:
        logging.getLogger("slimdeploy.x").exception("it failed")
    line = last(lines)
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert "OSError: broken" in str(line["exception"])
