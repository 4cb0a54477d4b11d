"""Tokens per minute: each key has its own, they come back as time goes by, and nobody's stream is cut."""

import httpx
import pytest
from echo_engine import EchoEngine
from hypothesis import given
from hypothesis import strategies as st
from live_server import Serve
from requests_to_send import user

from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.keys import VARIABLE
from slimdeploy.serve.quota import Quota


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def is_open(quota: Quota, key: str) -> bool:
    try:
        quota.check(key)
    except RequestError:
        return False
    return True


def test_what_is_used_comes_back_in_its_time(clock: Clock) -> None:
    quota = Quota(60, clock)
    quota.charge("ann", 59)
    assert is_open(quota, "ann")
    quota.charge("ann", 11)  # of one request that found a token left
    with pytest.raises(RequestError, match="has used its 60 tokens per minute; ask again in 11 s") as caught:
        quota.check("ann")
    assert (caught.value.status, caught.value.retry_after) == (429, 11)
    clock.now += 9.9
    assert not is_open(quota, "ann")
    clock.now += 1.1
    assert is_open(quota, "ann")


def test_each_key_has_its_own_and_who_has_none_share_one(clock: Clock) -> None:
    quota = Quota(10, clock)
    quota.charge("ann", 10)
    assert not is_open(quota, "ann")
    assert is_open(quota, "ben")
    assert is_open(quota, "")
    quota.charge("", 10)
    with pytest.raises(RequestError, match="requests without a key have used the 10 tokens per minute that they share"):
        quota.check("")


def test_no_more_than_a_minute_is_saved(clock: Clock) -> None:
    quota = Quota(10, clock)
    quota.charge("ann", 1)
    clock.now += 1e6
    quota.charge("ann", 10)
    assert not is_open(quota, "ann")


def test_without_a_bound_nothing_is_counted(clock: Clock) -> None:
    quota = Quota(0, clock)
    quota.charge("ann", 10**9)
    assert is_open(quota, "ann")


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 50)), max_size=60))
def test_over_time_no_key_has_more_than_its_share_and_one_request(steps: list[tuple[float, int]]) -> None:
    """steps: seconds until somebody asks, and tokens that he would use."""
    clock = Clock()
    quota, used = Quota(60, clock), 0
    for seconds, tokens in steps:
        clock.now += seconds
        if is_open(quota, "ann"):
            quota.charge("ann", tokens)
            used += tokens
    assert used <= 60 + (clock.now - Clock.now) + 50


def test_a_key_that_used_its_tokens_is_told_when_to_come_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"ann:{'a' * 16},ben:{'b' * 16}")
    url = serve(EchoEngine(), ServeConfig(tokens_per_minute=6))

    def ask(key: str, stream: bool = False) -> httpx.Response:
        body = {"model": "echo", "messages": user("one two three four"), "stream": stream}
        headers = {"Authorization": f"Bearer {key * 16}"}
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)

    assert ask("a", stream=True).text.endswith("data: [DONE]\n\n")  # whole, though it takes eight tokens
    for stream in (False, True):
        refused = ask("a", stream)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "has used its 6 tokens per minute" in refused.json()["error"]["message"]
        assert 20 <= int(refused.headers["retry-after"]) <= 30
    assert ask("b").status_code == 200
