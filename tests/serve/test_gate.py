"""Who gets in: no page of another web site, no more requests than can wait, and everyone else."""

import asyncio
import json
import subprocess

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import JSON, user
from test_app_refusals import refused

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app

BODY = {"model": "echo", "messages": user("one two")}
REBOUND = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::2]:8000"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_browser_sends_for_any_page_is_refused(url: str, kind: str) -> None:
    """No question is asked beforehand for these types; for JSON one is, and nobody here answers it."""
    headers = {"Content-Type": kind, "Origin": "https://evil.example"}
    response = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(BODY), headers=headers)
    assert "application/json" in refused(response, 415)["message"]
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{url}/v1/chat/completions", headers=asked).status_code == 405


def test_json_may_name_its_characters(url: str) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert httpx.post(f"{url}/v1/chat/completions", content=json.dumps(BODY), headers=headers).status_code == 200


def test_curl_gets_in(url: str) -> None:
    command = ["curl", "-s", f"{url}/v1/chat/completions", "-H", "content-type: application/json", "-d"]
    shown = subprocess.run([*command, json.dumps(BODY)], capture_output=True, check=True).stdout
    assert json.loads(shown)["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize("host", REBOUND)
def test_a_foreign_name_that_leads_to_this_machine_is_refused_on_every_route(url: str, host: str) -> None:
    with httpx.Client(base_url=url, headers={"Host": host}) as http:
        for response in (http.get("/"), http.get("/v1/models"), http.post("/v1/chat/completions", json=BODY)):
            refused(response, 403)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:9000", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_get_in_at_any_port(url: str, host: str) -> None:
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY, headers={"Host": host}).status_code == 200


def test_a_server_of_a_network_answers_to_any_name(serve: Serve) -> None:
    url = serve(EchoEngine(), ServeConfig(host="0.0.0.0"))
    assert httpx.get(f"{url}/health", headers={"Host": "camera-7.factory.example"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_finds_the_line_full_is_told_so_at_once_and_places_come_back(stream: bool) -> None:
    engine = EchoEngine(seconds_per_token=0.2)
    app = create_app(engine, ServeConfig(concurrency=1, max_waiting=16))

    async def ask_all(count: int) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = (http.post("/v1/chat/completions", json=BODY | {"stream": stream}) for _ in range(count))
            return await asyncio.gather(*asked)

    async def twice() -> list[list[httpx.Response]]:
        return [await ask_all(20) for _ in range(2)]

    for answers in asyncio.run(twice()):
        full = [answer for answer in answers if answer.status_code == 429]
        assert (len(full), sum(answer.status_code == 200 for answer in answers)) == (3, 17)
        assert full[0].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(full[0].headers["retry-after"]) <= 120
        assert "ask again later" in full[0].json()["error"]["message"]
    assert len(engine.requests) == 34


def test_the_full_line_refuses_before_a_body_is_read() -> None:
    app = create_app(EchoEngine(seconds_per_token=0.2), ServeConfig(concurrency=1, max_waiting=16))
    read = []

    async def body(name: str):  # type: ignore[no-untyped-def]
        read.append(name)
        yield json.dumps(BODY).encode()

    async def ask_all() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            path = "/v1/chat/completions"
            seated = [asyncio.create_task(http.post(path, content=body("seated"), headers=JSON)) for _ in range(17)]
            await asyncio.sleep(0.1)
            assert (await http.post(path, content=body("late"), headers=JSON)).status_code == 429
            await asyncio.gather(*seated)

    asyncio.run(ask_all())
    assert read == ["seated"] * 17


def test_all_bodies_together_have_a_bound_and_their_room_comes_back() -> None:
    """Two whole ones for each answer that is made at the same time."""
    app = create_app(EchoEngine(seconds_per_token=0.5), ServeConfig(concurrency=1, max_body_mb=0.01))
    line, path = app.state.line, "/v1/chat/completions"

    def content(size: int) -> bytes:
        return json.dumps(BODY).encode().ljust(size)

    async def ask_all() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            for _ in range(2):
                sizes = (9000, 9000, 1000)
                inside = [asyncio.create_task(http.post(path, content=content(n), headers=JSON)) for n in sizes]
                while line.held < 19_000:
                    await asyncio.sleep(0.01)
                full = await http.post(path, content=content(1001), headers=JSON)
                assert full.status_code == 429
                assert "have 19000 bytes" in full.json()["error"]["message"]
                assert 1 <= int(full.headers["retry-after"]) <= 120
                assert line.held == 19_000
                assert [answer.status_code for answer in await asyncio.gather(*inside)] == [200] * 3
                assert (line.held, line.inside) == (0, 0)
            too_large = await http.post(path, content=content(70_000), headers=JSON)
            assert too_large.status_code == 413  # what is thrown away is not counted
            assert line.held == 0

    asyncio.run(ask_all())
