"""Tokens of texts and conversations, and back: vLLM's two routes."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from requests_to_send import JSON, image_part, picture, user
from test_app_refusals import refused

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import GenerationRequest, Message, RequestError, greedy
from slimdeploy.serve.engines.onnx import OnnxEngine


@pytest.fixture
def real(artifact: Artifact) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(artifact, ServeConfig(threads=1))
    yield engine
    asyncio.run(engine.close())


def post(url: str, route: str, body: Any) -> httpx.Response:
    return httpx.post(f"{url}/{route}", json=body)


def test_a_text_and_a_conversation_have_tokens(url: str) -> None:
    text = post(url, "tokenize", {"model": "echo", "prompt": "one two three"}).json()
    assert text == {"count": 3, "max_model_len": 100, "tokens": [3, 3, 5]}
    parts = [{"type": "text", "text": "what is it"}, image_part(picture())]
    said = post(url, "tokenize", {"messages": user(parts), "add_generation_prompt": True}).json()
    assert said["tokens"] == [4, 2, 2, 0]


def test_tokens_have_a_text(url: str) -> None:
    assert post(url, "detokenize", {"model": "echo", "tokens": [1, 2]}).json() == {"prompt": "x xx"}


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("tokenize", {}, None),
        ("tokenize", {"prompt": "a", "messages": user("a")}, None),
        ("tokenize", {"prompt": 3}, "prompt"),
        ("tokenize", {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
        (
            "tokenize",
            {"messages": user([image_part("http://127.0.0.1/a.png")])},
            "messages[0].content[0].image_url.url",
        ),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("detokenize", {"tokens": "abc"}, "tokens"),
        ("detokenize", {"tokens": [], "skip": True}, "skip"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(url: str, route: str, body: Any, param: str | None) -> None:
    assert refused(post(url, route, body))["param"] == param


@pytest.mark.parametrize("route", ["tokenize", "detokenize"])
def test_another_model_is_unknown_and_other_bodies_are_no_json(url: str, route: str) -> None:
    body = {"model": "gpt", "prompt": "a"} if route == "tokenize" else {"model": "gpt", "tokens": []}
    refused(post(url, route, body), 404)
    refused(httpx.post(f"{url}/{route}", content=b"{", headers=JSON))
    refused(httpx.post(f"{url}/{route}", content=b"{}"), 415)


def test_the_engine_counts_what_a_request_is_charged_for(artifact: Artifact) -> None:
    async def both() -> tuple[list[int], int, str]:
        engine = OnnxEngine(artifact, ServeConfig(threads=1, concurrency=1))
        messages = (Message("user", ("What is it?",)),)
        tokens = await engine.tokenize(messages)
        chunks = [chunk async for chunk in engine.generate(GenerationRequest(messages, greedy(1)))]
        text = await engine.detokenize(await engine.tokenize("What is it?"))
        with pytest.raises(RequestError, match="'tokens' has 100000"):
            await engine.detokenize([100_000])
        await engine.close()
        return tokens, chunks[0].usage.prompt_tokens, text

    tokens, charged, text = asyncio.run(both())
    assert len(tokens) == charged
    assert text == "What is it?"


@pytest.mark.parametrize(
    "prompt",
    ["word " * 1_000_000, (Message("user", ("a" * 5_000_000,)),)],
    ids=["a text", "a message"],
)
def test_what_no_prompt_has_room_for_is_refused_before_it_is_read(real: OnnxEngine, prompt: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(RequestError, match="more than 510 tokens, and may have 255") as caught:
        asyncio.run(real.tokenize(prompt))
    assert caught.value.code == "context_length_exceeded"
    assert time.perf_counter() - start < 1
