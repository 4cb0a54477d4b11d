"""Whatever a client sends, it gets an error of OpenAI's shape that names the field, and the server goes on."""

import base64
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Serve
from requests_to_send import JSON, bilevel, client_of, image_part, picture, user

from slimdeploy.config import ServeConfig
from slimdeploy.serve import bodies, media
from slimdeploy.serve.engine import EncodedImage

MALFORMED: dict[str, tuple[Any, str | None]] = {
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages a string": ({"messages": "hi"}, "messages"),
    "message a string": ({"messages": ["hi"]}, "messages[0]"),
    "no role": ({"messages": [{"content": "a"}]}, "messages[0].role"),
    "tool role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "null content": ({"messages": user(None)}, "messages[0].content"),
    "empty content": ({"messages": user("")}, "messages[0]"),
    "no parts": ({"messages": user([])}, "messages[0]"),
    "empty text": ({"messages": user([{"type": "text", "text": ""}])}, "messages[0]"),
    "number as text": ({"messages": user([{"type": "text", "text": 1}])}, "messages[0].content[0].text"),
    "text missing": ({"messages": user([{"type": "text"}])}, "messages[0].content[0]"),
    "a text with a picture": (
        {"messages": user([{"type": "text", "text": "a", "image_url": {"url": picture()}}])},
        "messages[0].content[0]",
    ),
    "audio part": ({"messages": user([{"type": "input_audio"}])}, "messages[0].content[0].type"),
    "message name": ({"messages": [{"role": "user", "content": "a", "name": "n"}]}, "messages[0].name"),
    "part extra": ({"messages": user([{"type": "text", "text": "a", "x": 1}])}, "messages[0].content[0].x"),
    "model missing": ({"model": None}, "model"),
    "model a number": ({"model": 7}, "model"),
    "negative max_tokens": ({"max_tokens": -1}, "max_tokens"),
    "zero max_tokens": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "fractional max_tokens": ({"max_tokens": 1.5}, "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, "max_tokens"),
    "negative temperature": ({"temperature": -0.1}, "temperature"),
    "hot": ({"temperature": 2.1}, "temperature"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature"),
    "top_p infinite": ({"top_p": float("inf")}, "top_p"),
    "top_p above 1": ({"top_p": 1.1}, "top_p"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "seed true": ({"seed": True}, "seed"),
    "empty stop": ({"stop": ""}, "stop[0]"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "stop a number": ({"stop": [1]}, "stop[0]"),
    "stream a string": ({"stream": "yes"}, "stream"),
    "options without stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "five answers": ({"n": 5}, "n"),
    "no answer": ({"n": 0}, "n"),
    "n true": ({"n": True}, "n"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "logprobs a number": ({"logprobs": 3}, "logprobs"),
    "alternatives of no logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "21 alternatives": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a format of another kind": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "a format without its schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
        "response_format.json_schema.schema",
    ),
    "a schema without a name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
    ),
    "two outputs": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    "no output": ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    "no choice": ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    "a schema that is no JSON": ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    "a schema of another kind": ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    "an infinite schema": ({"structured_outputs": {"json": {"const": float("inf")}}}, "structured_outputs.json"),
    "a grammar": ({"structured_outputs": {"grammar": "start: a"}}, "structured_outputs.grammar"),
    "a format and an output": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    "presence beyond 2": ({"presence_penalty": 2.1}, "presence_penalty"),
    "frequency below -2": ({"frequency_penalty": -2.1}, "frequency_penalty"),
    "no repetition at all": ({"repetition_penalty": 0}, "repetition_penalty"),
    "penalty a string": ({"presence_penalty": "0.5"}, "presence_penalty"),
    "top_k below -1": ({"top_k": -2}, "top_k"),
    "fractional top_k": ({"top_k": 1.5}, "top_k"),
    "min_p above 1": ({"min_p": 1.1}, "min_p"),
    "negative stop token": ({"stop_token_ids": [3, -1]}, "stop_token_ids[1]"),
    "stop token a number": ({"stop_token_ids": 3}, "stop_token_ids"),
    "bias beyond 100": ({"logit_bias": {"3": 100.5}}, "logit_bias"),
    "bias for no token": ({"logit_bias": {"three": 1}}, "logit_bias.three.[key]"),
    "more tokens than the answer may have": ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    "unknown field": ({"top_kk": 4}, "top_kk"),
    "low detail": (
        {"messages": user([{"type": "image_url", "image_url": {"url": picture(), "detail": "low"}}])},
        "messages[0].content[0].image_url.detail",
    ),
    "nine images": ({"messages": user([image_part(picture())] * 9)}, "messages"),
    "image_url a string": (
        {"messages": user([{"type": "image_url", "image_url": picture()}])},
        "messages[0].content[0].image_url",
    ),
}
NO_PICTURES = {
    "http": "http://127.0.0.1:1/a.png",
    "https": "https://example.com/a.png",
    "file": "file:///etc/passwd",
    "path": "/etc/passwd",
    "empty": "",
    "no base64": "data:image/png,abc",
    "bad base64": "data:image/png;base64,@@@",
    "spaces in base64": "data:image/png;base64,aGVs bG8=",
    "cut base64": "data:image/png;base64,aGVsbG8",
    "other characters": "data:image/png;base64,é€",
    "nothing": "data:image/png;base64,",
    "no picture": "data:image/png;base64,aGVsbG8=",
    "other type": "data:text/html;base64,aGVsbG8=",
    "svg": "data:image/svg+xml;base64,PHN2Zy8+",
    "truncated": picture((50, 50))[:-40] + "AAAA",
}
RAW_BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut JSON": b'{"model": "echo", "messages": [',
    "deep": b"[" * 100_000,
    "deep object": b'{"messages":' * 50_000,
    "array": b"[1]",
    "string": b'"a"',
    "null": b"null",
    "NaN": b"NaN",
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "echo"}'.encode("utf-16"),
    "lone surrogate": b'{"model":"echo","messages":[{"role":"user","content":"\\ud800"}]}',
    "a huge number": b'{"model":"echo","messages":[{"role":"user","content":"a"}],"max_tokens":' + b"9" * 5000 + b"}",
    "a huge key": b'{"model":"echo","messages":[{"role":"user","content":"a"}],"' + b"k" * 5000 + b'":1}',
}


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(error["message"]) < 500
    return error


def test_malformed_fields_are_refused_by_name_and_the_server_goes_on(url: str) -> None:
    good = {"model": "echo", "messages": user("a")}
    with httpx.Client(base_url=url, headers=JSON) as http:
        for case, (change, param) in MALFORMED.items():
            # The standard library's JSON may say NaN, which httpx refuses to send.
            body = json.dumps(good | change)
            assert refused(http.post("/v1/chat/completions", content=body))["param"] == param, case
        assert http.post("/v1/chat/completions", json=good).status_code == 200


def test_urls_that_are_no_pictures_are_refused(client: openai.OpenAI) -> None:
    for case, bad in NO_PICTURES.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=user([image_part(bad)]))
        assert caught.value.param == "messages[0].content[0].image_url.url", case


def test_bodies_that_are_no_request_are_refused_and_the_server_goes_on(url: str) -> None:
    with httpx.Client(base_url=url, headers=JSON) as http:
        for body in RAW_BODIES.values():
            refused(http.post("/v1/chat/completions", content=body))
        assert http.get("/health").json() == {"status": "ok"}


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["messages", "stop", "seed", "temperature", "n", "stream", "stream_options", "max_tokens", "tools", "role"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(FIELDS, JSON_VALUE, max_size=3), JSON_VALUE)
def test_no_body_breaks_the_server(url: str, fields: dict[str, Any], content: Any) -> None:
    body = {"model": "echo", "messages": user(content)} | fields
    answer = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code in (200, 400)


def test_pictures_beyond_the_limits_are_refused(serve: Serve, engine: EchoEngine) -> None:
    limits = ServeConfig(max_image_mb=0.01, max_image_megapixels=0.01, max_images=1)
    client = client_of(serve(engine, limits))
    too_many_bytes = "data:image/png;base64," + base64.b64encode(b"x" * 11_000).decode()
    for content, message in (
        ([image_part(picture((101, 100)))], "101 x 100 pixels"),
        ([image_part(too_many_bytes)], "0.01 MB"),
        ([image_part(picture())] * 2, "at most 1"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(model="echo", messages=user(content))
    assert client.chat.completions.create(model="echo", messages=user([image_part(picture((100, 100)))]))


def test_pictures_share_one_limit_of_pixels_and_are_judged_before_they_are_decoded(
    serve: Serve, engine: EchoEngine
) -> None:
    client = client_of(serve(engine))
    large = bilevel((8000, 5000))
    with pytest.raises(openai.BadRequestError, match=r"320\.0 megapixels together; at most 40") as caught:
        client.chat.completions.create(model="echo", messages=user([image_part(large)] * 8))
    assert caught.value.param == "messages"
    assert engine.requests == []
    client.chat.completions.create(model="echo", messages=user([image_part(picture((9, 9)))] * 8))
    assert all(isinstance(part, EncodedImage) for part in engine.requests[0].prompt[0].parts)


def test_pictures_of_too_many_pixels_are_refused_before_one_is_looked_at_more_closely(
    serve: Serve, engine: EchoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[bytes] = []
    monkeypatch.setattr(media, "check_image", lambda data, _: looked_at.append(data))
    client = client_of(serve(engine, ServeConfig(max_image_megapixels=0.01)))
    with pytest.raises(openai.BadRequestError, match=r"0\.1 megapixels together; at most 0\.01"):
        client.chat.completions.create(model="echo", messages=user([image_part(picture((100, 100), "webp"))] * 8))
    assert looked_at == []


def test_a_picture_that_makes_the_body_too_large_is_named(serve: Serve, engine: EchoEngine) -> None:
    client = client_of(serve(engine, ServeConfig(max_image_mb=0.1, max_body_mb=0.3)))
    for size in (110_000, 1_000_000):  # a body within its limit, and one beyond
        big = "data:image/jpeg;base64," + base64.b64encode(b"x" * size).decode()
        content = [{"type": "text", "text": "a"}, image_part(picture()), image_part(big)]
        with pytest.raises(openai.BadRequestError, match=r"larger than the 0\.1 MB") as caught:
            client.chat.completions.create(model="echo", messages=[*user("a"), *user(content)])
        assert caught.value.param == "messages[1].content[2].image_url.url"
    fitting = "data:image/jpeg;base64," + base64.b64encode(b"x" * 90_000).decode()
    for content in ("a" * 400_000, [image_part(fitting)] * 4):
        with pytest.raises(openai.APIStatusError) as refusal:
            client.chat.completions.create(model="echo", messages=user(content))
        assert (refusal.value.status_code, refusal.value.param) == (413, None)


def test_a_body_that_does_not_come_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS_FOR_A_BODY", 0.1)
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert b"408" in connection.recv(100)


def test_a_body_beyond_the_limit_is_413_by_its_length_or_as_it_comes(serve: Serve, engine: EchoEngine) -> None:
    url = serve(engine, ServeConfig(max_body_mb=0.001))
    with httpx.Client(base_url=url, headers=JSON) as http:
        refused(http.post("/v1/chat/completions", content=b"x" * 1001), 413)
        refused(http.post("/v1/chat/completions", content=(b"x" * 100 for _ in range(11))), 413)
        refused(http.post("/v1/chat/completions", content=b"x" * 1000), 400)


def test_a_length_that_is_announced_is_refused_before_the_body_comes(serve: Serve, engine: EchoEngine) -> None:
    parts = urlsplit(serve(engine))
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 99999999999\r\n\r\n")
        assert b"413" in connection.recv(100)


def test_unknown_routes_and_methods_have_openais_shape(url: str) -> None:
    refused(httpx.get(f"{url}/v1/nothing"), 404)
    refused(httpx.get(f"{url}/v1/chat/completions"), 405)
    refused(httpx.get(f"{url}/docs"), 404)
