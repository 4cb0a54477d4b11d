"""Who is answered and who waits: in order, not too many, not for ever, and nobody keeps a place that he left."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import httpx
import pytest
from echo_engine import EchoEngine
from hypothesis import given
from hypothesis import strategies as st
from requests_to_send import user

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.serve.app import create_app
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.line import Line

T = TypeVar("T")


def soon(work: Awaitable[T]) -> T:
    """The result of what must not take long."""

    async def bounded() -> T:
        return await asyncio.wait_for(work, 10)

    return asyncio.run(bounded())


async def settled() -> None:
    """Every task has come as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_places_are_given_in_the_order_of_arrival() -> None:
    line = Line(ServeConfig(concurrency=2))
    came: list[int] = []

    async def answer(number: int) -> None:
        async with line.place():
            came.append(number)
            await asyncio.sleep(0.001 * (number % 3))

    async def all_of_them() -> None:
        await asyncio.gather(*(answer(number) for number in range(20)))

    soon(all_of_them())
    assert came == list(range(20))
    assert (line.running, line.waiting) == (0, 0)


def test_who_waited_too_long_is_told_when_to_come_again() -> None:
    line = Line(ServeConfig(concurrency=1, max_wait_s=0.05))

    async def late() -> RequestError:
        async with line.place():
            with pytest.raises(RequestError, match=r"no place was free within 0\.05 s") as caught:
                async with line.place():
                    pytest.fail("there was no place")
            assert (line.running, line.waiting) == (1, 0)
        async with line.place():  # its turn did not get lost
            return caught.value

    error = soon(late())
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.retry_after is not None
    assert 1 <= error.retry_after <= 120


def test_further_answers_of_a_request_wait_as_long_as_it_takes() -> None:
    line = Line(ServeConfig(concurrency=1, max_wait_s=0.01))

    async def second() -> float:
        async def hold() -> None:
            async with line.place():
                await asyncio.sleep(0.1)

        holding = asyncio.create_task(hold())
        await settled()
        async with line.place(is_first=False) as waited:
            await holding
            return waited

    assert soon(second()) > 0.05


@given(st.lists(st.sampled_from(["ends", "is cancelled", "fails"]), min_size=1, max_size=12), st.integers(1, 3))
def test_however_answers_end_all_places_come_back(endings: list[str], concurrency: int) -> None:
    line = Line(ServeConfig(concurrency=concurrency))

    async def answer(ending: str) -> None:
        async with line.place():
            await asyncio.sleep(0)
            if ending == "fails":
                raise OSError("broken")

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(answer(ending)) for ending in endings]
        for steps, (task, ending) in enumerate(zip(tasks, endings, strict=True)):
            if ending == "is cancelled":  # some of them while they wait, some while they are answered
                for _ in range(steps % 4):
                    await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(answer("ends"))

    soon(all_of_them())
    assert (line.running, line.waiting) == (0, 0)


def test_who_leaves_while_he_waits_makes_room_for_the_next() -> None:
    line = Line(ServeConfig(concurrency=1))
    came: list[str] = []

    async def answer(name: str) -> None:
        async with line.place():
            came.append(name)

    async def leave() -> None:
        async with line.place():
            leaving, staying = (asyncio.create_task(answer(name)) for name in ("leaves", "stays"))
            await settled()
            assert line.waiting == 2
            leaving.cancel()
            await settled()
            assert line.waiting == 1
        await staying

    soon(leave())
    assert came == ["stays"]


def test_a_line_is_full_by_requests_and_not_by_their_answers() -> None:
    line = Line(ServeConfig(concurrency=2, max_waiting=1))
    for _ in range(3):
        line.enter()
    with pytest.raises(RequestError, match="3 requests are running or waiting") as caught:
        line.enter()
    assert caught.value.status == 429
    line.leave()
    line.enter()


def test_a_closed_line_lets_nobody_in() -> None:
    line = Line(ServeConfig())
    line.enter()
    line.close()
    with pytest.raises(ServeError, match="shutting down"):
        line.enter()
    assert line.inside == 1


def test_the_wait_that_is_told_grows_with_those_before_and_with_what_they_take() -> None:
    line = Line(ServeConfig(concurrency=2))
    line._usual_seconds = 10.0
    waits = []
    for line.waiting in (0, 3, 9, 10_000):
        waits.append(line.retry_after)
    assert waits == [5, 20, 50, 120]


async def ask(http: httpx.AsyncClient, words: str, **fields: object) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": "echo", "messages": user(words)} | fields)


def client_of(config: ServeConfig) -> httpx.AsyncClient:
    app = create_app(EchoEngine(seconds_per_token=0.1), config)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def test_more_answers_than_places_are_all_given() -> None:
    async def asked() -> httpx.Response:
        async with client_of(ServeConfig(concurrency=1, max_waiting=0, max_wait_s=0.05)) as http:
            return await ask(http, "one", n=4)

    answer = soon(asked())
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["one"] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_in_line_ends_with_429_for_streams_too(stream: bool) -> None:
    async def asked() -> list[httpx.Response]:
        async with client_of(ServeConfig(concurrency=1, max_wait_s=0.1)) as http:
            first = asyncio.create_task(ask(http, "one two three four"))
            await asyncio.sleep(0.05)
            return [await ask(http, "late", stream=stream), await first]

    late, first = soon(asked())
    assert (late.status_code, first.status_code) == (429, 200)
    assert "no place was free within 0.1 s" in late.json()["error"]["message"]
    assert int(late.headers["retry-after"]) >= 1
