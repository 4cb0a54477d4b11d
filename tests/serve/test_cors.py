"""Pages of other web sites: none by default, those that are named if they have a key."""

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import user
from test_app_refusals import refused

from slimdeploy.config import ServeConfig
from slimdeploy.serve.keys import VARIABLE

NAMED, OTHER = "https://example.org", "https://evil.example"
BODY = {"model": "echo", "messages": user("one")}
KEY = {"Authorization": f"Bearer {'a' * 16}"}


@pytest.fixture
def url(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, f"ann:{'a' * 16}")
    return serve(EchoEngine(), ServeConfig(cors_origins=(NAMED,)))


def preflight(url: str, origin: str, method: str = "POST") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",  # by OpenAI's client
    }
    return httpx.options(f"{url}/v1/chat/completions", headers=asked)


def ask(url: str, origin: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=BODY, headers={"Origin": origin} | headers)


def test_a_browser_may_ask_beforehand_without_a_key_for_a_page_that_is_named(url: str) -> None:
    answer = preflight(url, NAMED)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == NAMED
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert "authorization" in allowed
    assert "x-stainless-lang" in allowed
    assert "access-control-allow-credentials" not in answer.headers


def test_a_host_has_no_capital_letters(serve: Serve) -> None:
    """In what browsers send."""
    url = serve(EchoEngine(), ServeConfig(cors_origins=("https://Example.org",)))
    assert preflight(url, NAMED).headers["access-control-allow-origin"] == NAMED


def test_no_other_page_is_let_in(url: str) -> None:
    answer = preflight(url, OTHER)
    assert f"pages of '{OTHER}' may not ask" in refused(answer)["message"]
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"].startswith("Origin")
    assert "access-control-allow-origin" not in ask(url, OTHER, KEY).headers


def test_a_page_that_is_named_reads_why_it_may_not_ask_in_another_way(url: str) -> None:
    answer = preflight(url, NAMED, "DELETE")
    assert "may not ask this with DELETE" in refused(answer)["message"]
    assert answer.headers["access-control-allow-origin"] == NAMED


def test_the_page_that_is_named_still_needs_the_key_and_reads_what_it_is_told(url: str) -> None:
    strange, known = ask(url, NAMED, {}), ask(url, NAMED, KEY)
    assert (strange.status_code, known.status_code) == (401, 200)
    for response in (strange, known):
        assert response.headers["access-control-allow-origin"] == NAMED
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


def test_by_default_nothing_is_said_of_origins(serve: Serve) -> None:
    url = serve(EchoEngine())
    for response in (ask(url, NAMED, {}), preflight(url, NAMED)):
        assert not [name for name in response.headers if name.startswith("access-control")]
