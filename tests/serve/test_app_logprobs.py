"""Log probabilities reach a client in OpenAI's shape, in whole answers and in streams."""

import json
from typing import Any

import httpx
import openai
import pytest
from live_server import Serve
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from requests_to_send import client_of, image_part, picture, user

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engines.onnx import OnnxEngine


def content(answer: ChatCompletion) -> list[ChatCompletionTokenLogprob]:
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    return logprobs.content


def streamed(client: openai.OpenAI, **request: Any) -> tuple[str, list[ChatCompletionTokenLogprob]]:
    text, tokens = "", []
    for chunk in client.chat.completions.create(stream=True, **request):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.content or []
    return text, tokens


@pytest.mark.parametrize("top_logprobs", [None, 0, 1, 20])
def test_streams_tell_what_whole_answers_tell(client: openai.OpenAI, top_logprobs: int | None) -> None:
    request = {"model": "echo", "messages": user("one é"), "logprobs": True, "top_logprobs": top_logprobs}
    unary = client.chat.completions.create(**request)
    assert streamed(client, **request) == (unary.choices[0].message.content, content(unary))
    assert [(each.token, each.logprob, each.bytes) for each in content(unary)] == [
        ("one", 0.0, list(b"one")),
        (" é", 0.0, list(" é".encode())),
    ]
    assert [len(each.top_logprobs) for each in content(unary)] == [top_logprobs or 0] * 2


def test_the_fields_are_openais_and_no_others(url: str) -> None:
    body = {"model": "echo", "messages": user("one two"), "logprobs": True, "top_logprobs": 2}
    unary = httpx.post(f"{url}/v1/chat/completions", json=body).json()
    ChatCompletion.model_validate(unary, strict=True)
    assert unary["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": word,
                "logprob": 0.0,
                "bytes": list(word.encode()),
                "top_logprobs": [
                    {"token": word, "logprob": 0.0, "bytes": list(word.encode())},
                    {"token": "<1>", "logprob": -9999.0, "bytes": None},
                ],
            }
            for word in ("one", " two")
        ],
        "refusal": None,
    }
    *events, _ = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}).text.strip().split("\n\n")
    for event in events:
        ChatCompletionChunk.model_validate(json.loads(event.removeprefix("data: ")), strict=True)


@pytest.mark.parametrize("logprobs", [None, False])
def test_nothing_is_told_unasked(client: openai.OpenAI, logprobs: bool | None) -> None:
    request = {"model": "echo", "messages": user("one two"), "logprobs": logprobs}
    assert client.chat.completions.create(**request).choices[0].logprobs is None
    assert streamed(client, **request) == ("one two", [])


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_the_bytes_are_the_real_engines_answer_also_of_half_characters(
    serve: Serve, artifact: Artifact, temperature: float
) -> None:
    # Without what the first request computed: read in other pieces, a prompt has other last bits.
    client = client_of(serve(OnnxEngine(artifact, ServeConfig(threads=1, cache_mb=0))))
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": user([image_part(picture()), {"type": "text", "text": "What?"}]),
        "temperature": temperature,
        "seed": 4,
        "max_tokens": 24,
        "logprobs": True,
        "top_logprobs": 3,
        "presence_penalty": 0.5,
        "extra_body": {"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.2},
    }
    unary = client.chat.completions.create(**request)
    text, tokens = streamed(client, **request)
    assert (text, tokens) == (unary.choices[0].message.content, content(unary))
    data = b"".join(bytes(each.bytes or ()) for each in tokens)
    # What never became a whole character at the end is in the bytes alone.
    assert data.decode(errors="replace").rstrip("\ufffd") == text
    assert any(each.token == "\ufffd" for each in tokens)


def test_an_answer_that_ends_at_once_has_an_empty_list(serve: Serve, artifact: Artifact) -> None:
    # Without what the first request computed: read in other pieces, a prompt has other last bits.
    client = client_of(serve(OnnxEngine(artifact, ServeConfig(threads=1, cache_mb=0))))
    every_token = {"stop_token_ids": list(range(1000))}
    answer = client.chat.completions.create(model="tiny", messages=user("a"), logprobs=True, extra_body=every_token)
    assert (answer.choices[0].message.content, content(answer)) == ("", [])
    assert answer.choices[0].finish_reason == "stop"
