"""Tokens of a prompt, and of prompt and answer together: at most as many as is set, and none is counted in vain."""

import time
from collections.abc import Iterator

import httpx
import pytest
from live_server import live_server
from requests_to_send import image_part, picture, user

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.engines.onnx import OnnxEngine
from slimdeploy.serve.engines.onnx_model import OnnxModel

PROMPT, TOTAL = 60, 80
LARGE = 1_500_000


@pytest.fixture(scope="module")
def url(artifact: Artifact) -> Iterator[str]:
    config = ServeConfig(threads=1, max_prompt_tokens=PROMPT, max_total_tokens=TOTAL)
    with live_server(OnnxEngine(artifact, config), config) as url:
        yield url


def complete(url: str, prompt: str, **fields: object) -> httpx.Response:
    """A character of these prompts is a token."""
    return httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": prompt} | fields, timeout=30)


def test_the_longest_prompt_is_answered_and_a_longer_one_refused(url: str) -> None:
    assert complete(url, "x" * PROMPT).json()["usage"]["prompt_tokens"] == PROMPT
    refused = complete(url, "x" * (PROMPT + 1))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert f"has {PROMPT + 1} tokens" in error["message"]
    assert f"may have {PROMPT}, with its answer {TOTAL}" in error["message"]


def test_an_answer_ends_where_both_together_are_as_long_as_they_may_be(url: str) -> None:
    usage = complete(url, "x" * 50, max_tokens=500, ignore_eos=True).json()["usage"]
    assert usage["total_tokens"] == TOTAL


def test_tokens_of_pictures_count(url: str) -> None:
    def ask(words: str) -> httpx.Response:
        body = {"model": "tiny", "messages": user([image_part(picture()), {"type": "text", "text": words}])}
        return httpx.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 1}, timeout=30)

    taken = ask("x").json()["usage"]["prompt_tokens"]
    assert ask("x" * (1 + PROMPT - taken)).status_code == 200
    assert ask("x" * (2 + PROMPT - taken)).status_code == 400


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_a_text_that_is_far_too_long_is_refused_before_it_is_encoded(url: str, route: str) -> None:
    words = "a long text " * (LARGE // 12)
    said = {"/v1/chat/completions": {"messages": user(words)}, "/v1/responses": {"input": words}}
    start = time.monotonic()
    refused = httpx.post(f"{url}{route}", json={"model": "tiny"} | said.get(route, {"prompt": words}), timeout=60)
    assert time.monotonic() - start < 3  # encoded, it would take longer, and some 400 MB
    assert refused.status_code == 400
    assert f"has more than {2 * PROMPT} tokens" in refused.json()["error"]["message"]


def test_a_long_text_of_few_tokens_is_a_prompt_like_any_other(artifact: Artifact) -> None:
    model = OnnxModel(artifact.path, 1)
    text, most = model.text, 50
    assert not text.is_hopeless(["x" * 400], most)
    assert text.is_hopeless(["x" * 401], most)
    assert text.is_hopeless(["x" * 200, "y" * 201], most)
    rare = "</s>" * 150  # 600 characters; as a client's words no control tokens
    assert text.is_hopeless([rare], most)
    with pytest.raises(RequestError, match="more than 510 tokens"):
        model.read("x" * 10_000)
