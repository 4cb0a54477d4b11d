"""The server through the clients that people have: the openai package and plain HTTP."""

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from echo_engine import TOO_LONG, EchoEngine
from live_server import Serve
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai_types import exactly
from requests_to_send import client_of, image_part, picture, user

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import EncodedImage, Grammar, Sampling
from slimdeploy.serve.engines.onnx import OnnxEngine


def text_of(chunks: Sequence[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=user("one two three"), max_tokens=2)
    assert answer.choices[0].message.content == "one two"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 2, 5)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.model == "echo"
    assert answer.id.startswith("chatcmpl-")


def test_the_stream_has_the_unary_answers_text(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="echo", messages=user("one two three"), stream=True))
    assert text_of(chunks) == "one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_follows_a_stream_when_it_is_asked_for(client: openai.OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="echo", messages=user("one two"), stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 4
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"max_tokens": 1}])
def test_answers_have_openais_fields_and_no_others(url: str, more: dict[str, Any]) -> None:
    body = {"model": "echo", "messages": user("one two")} | more
    unary = exactly(ChatCompletion, httpx.post(f"{url}/v1/chat/completions", json=body).json())
    assert len(unary.choices) == more.get("n", 1)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = httpx.post(f"{url}/v1/chat/completions", json=body | options)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *events, done = streamed.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    chunks = [exactly(ChatCompletionChunk, json.loads(event.removeprefix("data: "))) for event in events]
    assert chunks[-1].usage.total_tokens == unary.usage.total_tokens
    told = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content
    ]
    assert len(told) == sum(len(choice.logprobs.content) for choice in unary.choices if choice.logprobs)


def test_other_routes_have_openais_fields_and_no_others(url: str) -> None:
    listed = httpx.get(f"{url}/v1/models").json()
    assert set(listed) == {"object", "data"}
    for model in (*listed["data"], httpx.get(f"{url}/v1/models/echo").json()):
        exactly(Model, model)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "gif"])
def test_pictures_reach_the_engine_in_their_places(client: openai.OpenAI, engine: EchoEngine, form: str) -> None:
    content = [
        {"type": "text", "text": "what"},
        image_part(picture((5, 3), form)),
        image_part(picture((2, 9), form)),
        {"type": "text", "text": "these"},
    ]
    answer = client.chat.completions.create(model="echo", messages=user(content))
    assert answer.choices[0].message.content == "what [5x3] [2x9] these"
    assert isinstance(engine.requests[0].prompt[0].parts[1], EncodedImage)


def test_settings_reach_the_engine(client: openai.OpenAI, engine: EchoEngine) -> None:
    client.chat.completions.create(
        model="echo",
        messages=[
            {"role": "developer", "content": "brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "b"},
        ],
        temperature=0.5,
        top_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-1,
        seed=-7,
        stop=["x", "yy"],
        max_tokens=3,
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=4,
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "stop_token_ids": [7, 8],
            "ignore_eos": True,
            "min_tokens": 2,
            "structured_outputs": {"regex": "a+"},
        },
        logit_bias={"5": -100, "77": 2.5},
    )
    (request,) = engine.requests
    assert request.sampling == Sampling(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-1,
        seed=-7,
        stop=("x", "yy"),
        stop_tokens=(7, 8),
        ignore_eos=True,
        min_tokens=2,
        logit_bias={5: -100, 77: 2.5},
        logprobs=4,
        grammar=Grammar("regex", "a+", "structured_outputs.regex"),
    )
    untouched = [f.name for f in fields(Sampling) if getattr(request.sampling, f.name) == f.default]
    assert untouched == []  # no setting that a client cannot reach
    assert [message.role for message in request.prompt] == ["system", "user", "assistant", "user"]


def test_defaults_are_openais_and_the_servers(serve: Serve, engine: EchoEngine) -> None:
    client = client_of(serve(engine, ServeConfig(max_tokens=7)))
    client.chat.completions.create(model="echo", messages=user("a"), stop="s")
    client.chat.completions.create(model="echo", messages=user("a"), max_tokens=1000)
    first, second = (request.sampling for request in engine.requests)
    assert first == Sampling(7, temperature=1.0, top_p=1.0, seed=None, stop=("s",))
    assert second == Sampling(7)


def test_fields_at_values_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=user([{"type": "image_url", "image_url": {"url": picture(), "detail": "auto"}}]),
        n=1,
        tools=[],
        store=False,
        logprobs=False,
        top_logprobs=0,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        service_tier="auto",
        user="someone",
        metadata={"a": "b"},
        stop=None,
    )
    assert answer.choices[0].message.content == "[5x3]"


def test_an_answer_can_be_sent_back_as_history(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=user("a"))
    messages = [*user("a"), answer.choices[0].message.model_dump(), *user("b")]
    assert client.chat.completions.create(model="echo", messages=messages).choices[0].message.content == "b"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_a_model_that_is_not_here_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=user("a"))
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_what_the_engine_refuses_is_400_also_for_streams(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=user(TOO_LONG), stream=stream)
        assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


def test_what_breaks_inside_is_500_without_a_word_of_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=user("break at once"))
    assert "secret" not in str(caught.value)
    assert client.chat.completions.create(model="echo", messages=user("a")).choices[0].message.content == "a"


def test_a_server_that_is_shutting_down_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
        client.chat.completions.create(model="echo", messages=user("close"))
    assert caught.value.status_code == 503


def test_a_stream_that_breaks_tells_its_client(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="echo", messages=user("one break"), stream=True)
    with pytest.raises(openai.APIError, match="the server failed") as caught:
        list(chunks)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(serve: Serve, stream: bool) -> None:
    engine = EchoEngine(seconds_per_token=0.02)
    parts = urlsplit(serve(engine))
    body = json.dumps({"model": "echo", "messages": user("word " * 2000), "stream": stream}).encode()
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: engine.running == 1)
    until(lambda: (engine.running, engine.ended) == (0, 1))


def test_the_real_engine_behind_the_server(serve: Serve, artifact: Artifact) -> None:
    client = client_of(serve(OnnxEngine(artifact, ServeConfig(threads=1))))
    request = {"model": "tiny", "messages": user([image_part(picture()), {"type": "text", "text": "What?"}])}
    unary = client.chat.completions.create(**request, temperature=0, max_tokens=12)
    chunks = list(client.chat.completions.create(**request, temperature=0, max_tokens=12, stream=True))
    assert text_of(chunks) == unary.choices[0].message.content
    drawn = [
        client.chat.completions.create(**request, temperature=1.2, seed=5, max_tokens=12).choices[0].message.content
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    with pytest.raises(openai.BadRequestError, match="may have 255") as caught:
        client.chat.completions.create(model="tiny", messages=user("x" * 300))
    assert caught.value.code == "context_length_exceeded"


def test_a_fault_of_the_server_itself_has_openais_shape_on_every_route(serve: Serve) -> None:
    class Broken(EchoEngine):
        @property
        def kv_usage(self) -> float:  # type: ignore[override]
            raise OSError("/secret/path")

    answer = httpx.get(f"{serve(Broken())}/metrics")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
