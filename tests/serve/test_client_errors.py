"""Errors as the openai package understands them: each status has its class, and says what and where."""

from pathlib import Path

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import client_of, user

from slimdeploy.config import ServeConfig

KEY = "k" * 16


def test_a_bad_request_names_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=user("a"), temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")


def test_a_wrong_key_is_no_authentication(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"ann:{KEY}")
    url = serve(EchoEngine(), ServeConfig(api_keys_file=str(tmp_path / "keys.txt")))
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(url).responses.create(model="echo", input="a")
    assert caught.value.code == "invalid_api_key"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.models.retrieve("other"),
        lambda: client.responses.create(model="other", input="a"),
        lambda: client.completions.create(model="other", prompt="a"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_who_has_used_up_its_tokens_is_told_when_to_come_again(serve: Serve) -> None:
    client = client_of(serve(EchoEngine(), ServeConfig(tokens_per_minute=1)))
    client.chat.completions.create(model="echo", messages=user("one two three"))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="echo", messages=user("one"))
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) > 60


@pytest.mark.parametrize(("said", "status"), [("break at once", 500), ("close", 503)])
def test_a_server_that_fails_or_stops_says_so(client: openai.OpenAI, said: str, status: int) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model="echo", input=said)
    assert (caught.value.status_code, caught.value.type) == (status, "server_error")
    assert ("retry-after" in caught.value.response.headers) == (status == 503)


def test_a_client_that_may_retry_comes_again_after_the_seconds_it_was_told(serve: Serve) -> None:
    """The package reads Retry-After: one that is told 1 s waits for no longer than it must."""
    engine = EchoEngine(seconds_per_token=0.3)
    url = serve(engine, ServeConfig(concurrency=1, max_waiting=0))
    patient = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3, timeout=20)
    body = {"model": "echo", "messages": user("one two"), "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as first:
        next(first.iter_raw())
        answer = patient.chat.completions.create(model="echo", messages=user("three"))
    assert answer.choices[0].message.content == "three"
