"""Several answers to one request, whole and streamed, by the client that people use."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from requests_to_send import client_of, user
from test_app_remote_images import SCOPE

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.engine import Chunk, GenerationRequest

BODY = {"model": "echo", "messages": user("one two three"), "n": 3}


def test_every_answer_has_its_number_and_the_prompt_counts_once(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=user("one two three"), n=3, logprobs=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"one two three"}
    assert all(choice.logprobs and len(choice.logprobs.content or []) == 3 for choice in answer.choices)
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 9, 12)


def test_streamed_answers_come_side_by_side_and_end_each_for_itself(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=user("one two three"), n=2, stream=True, stream_options={"include_usage": True}
    )
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, str | None] = {}
    events = list(stream)
    for event in events[:-1]:
        (choice,) = event.choices
        assert choice.index not in ends
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {0: "one two three", 1: "one two three"}
    assert ends == {0: "stop", 1: "stop"}
    assert not events[-1].choices
    assert events[-1].usage
    assert events[-1].usage.completion_tokens == 6


def test_each_answer_is_drawn_from_a_seed_of_its_own(client: openai.OpenAI, engine: EchoEngine) -> None:
    client.chat.completions.create(model="echo", messages=user("a"), n=3, seed=7)
    assert sorted(request.sampling.seed or 0 for request in engine.requests) == [7, 8, 9]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_all_of_its_answers(serve: Serve, stream: bool) -> None:
    engine = EchoEngine(seconds_per_token=0.1)
    url = serve(engine)
    body = BODY | {"messages": user("word " * 100), "stream": stream}
    with (
        suppress(httpx.ReadTimeout),  # of the answer that is not streamed
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=0.5) as response,
    ):
        next(response.iter_raw())
    for _ in range(50):
        if engine.running == 0 and engine.ended == 3:
            break
        time.sleep(0.1)
    assert (engine.running, engine.ended) == (0, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_whose_client_leaves_ends_in_its_own_time(stream: bool) -> None:
    class Thorough(EchoEngine):
        gone = 0

        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
            try:
                async with aclosing(super().generate(request)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                await asyncio.sleep(0.1)  # the token that is being made
                self.gone += 1

    app = create_app(engine := Thorough(seconds_per_token=0.1), ServeConfig())
    body = json.dumps(BODY | {"messages": user("word " * 100), "stream": stream}).encode()
    came = iter([{"type": "http.request", "body": body}])
    inside: list[int] = []

    async def receive() -> Any:
        if (message := next(came, None)) is not None:
            return message
        while engine.running < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)  # the stream has begun
        inside.append(app.state.line.inside)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    async def leave() -> None:
        async with asyncio.timeout(30):
            await app(SCOPE, receive, send)
        assert set(inside) == {1}
        assert (engine.gone, app.state.line.inside) == (3, 0)

    asyncio.run(leave())


def test_an_answer_that_ends_without_a_reason_fails_the_request(serve: Serve) -> None:
    class Unfinished(EchoEngine):
        async def generate(self, _: GenerationRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk("one")

    response = httpx.post(f"{serve(Unfinished())}/v1/chat/completions", json=BODY, timeout=10)
    assert response.status_code == 500


def test_one_that_fails_fails_the_request(serve: Serve) -> None:
    engine = EchoEngine()
    url = serve(engine)
    broken = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"messages": user("one break two")})
    assert broken.status_code == 500
    assert "/secret" not in broken.text
    streamed = httpx.post(f"{url}/v1/chat/completions", json=BODY | {"messages": user("one break"), "stream": True})
    assert json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert engine.running == 0
    assert client_of(url).chat.completions.create(model="echo", messages=user("a")).choices
