"""/v1/completions by the client that people use: texts without a conversation, whole and streamed."""

import asyncio
import json

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from openai.types import Completion
from openai_types import exactly
from requests_to_send import client_of

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import GenerationRequest, TokenIds, greedy
from slimdeploy.serve.engines.onnx import OnnxEngine

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "an empty one among others": ({"prompt": ["a", ""]}, "prompt"),
    "prompts in lists of lists": ({"prompt": [["a"]]}, "prompt"),
    "true as an id": ({"prompt": [True]}, "prompt"),
    "a negative id": ({"prompt": [3, -1]}, "prompt"),
    "five prompts": ({"prompt": ["a"] * 5}, "prompt"),
    "six answers": ({"prompt": ["a"] * 2, "n": 3}, "prompt"),
    "echo": ({"echo": True}, "echo"),
    "best of two": ({"best_of": 2}, "best_of"),
    "suffix": ({"suffix": "end"}, "suffix"),
    "logprobs true": ({"logprobs": True}, "logprobs"),
    "messages": ({"messages": []}, "messages"),
    "options without stream": ({"stream_options": {}}, "stream_options"),
}


def test_a_text_is_gone_on_with(client: openai.OpenAI, engine: EchoEngine) -> None:
    answer = client.completions.create(model="echo", prompt="one two three", max_tokens=2, seed=3)
    assert [choice.text for choice in answer.choices] == ["one two"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")
    assert answer.usage
    assert answer.usage.total_tokens == 5
    assert engine.requests == [GenerationRequest("one two three", engine.requests[0].sampling)]
    assert engine.requests[0].sampling.seed == 3


def test_an_answer_has_16_tokens_where_none_are_named(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="word " * 40)
    assert answer.usage
    assert answer.usage.completion_tokens == 16


def test_tokens_stand_for_a_text(client: openai.OpenAI, engine: EchoEngine) -> None:
    assert client.completions.create(model="echo", prompt=[1, 2]).choices[0].text == "x xx"
    assert engine.requests[0].prompt == TokenIds((1, 2))


def test_each_prompt_has_its_answers_and_counts_once(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt=["one", "two three"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        *((0, "one"), (1, "one"), (2, "two three"), (3, "two three"))
    ]
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
    several_ids = client.completions.create(model="echo", prompt=[[1], [2, 1]])
    assert [choice.text for choice in several_ids.choices] == ["x", "xx x"]


def test_the_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    *chunks, usage = client.completions.create(
        model="echo", prompt=["one two", "three"], stream=True, logprobs=1, stream_options={"include_usage": True}
    )
    for number, text in enumerate(("one two", "three")):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert "".join(choice.text for choice in own) == text
        assert [choice.finish_reason for choice in own][-1] == "stop"
        assert [choice.logprobs.text_offset for choice in own if choice.logprobs] == [[0], [3]][: len(own)]
    assert usage.choices == []
    assert usage.usage
    assert usage.usage.completion_tokens == 3


def test_logprobs_have_the_older_shape(client: openai.OpenAI) -> None:
    told = client.completions.create(model="echo", prompt="one two", logprobs=2).choices[0].logprobs
    assert told
    assert (told.tokens, told.token_logprobs, told.text_offset) == (["one", " two"], [0.0, 0.0], [0, 3])
    assert told.top_logprobs == [{"one": 0.0, "<1>": -9999.0}, {" two": 0.0, "<1>": -9999.0}]


def test_answers_have_openais_fields_and_no_others(url: str) -> None:
    body = {"model": "echo", "prompt": ["one two", "three"], "logprobs": 1}
    exactly(Completion, httpx.post(f"{url}/v1/completions", json=body).json())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, done = httpx.post(f"{url}/v1/completions", json=body | options).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    for event in events:
        values = json.loads(event.removeprefix("data: "))
        for choice in values["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # the package knows no null, OpenAI sends it
        exactly(Completion, values)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_request_is_refused_by_name(url: str, case: str) -> None:
    change, param = REFUSED[case]
    answer = httpx.post(f"{url}/v1/completions", json={"model": "echo", "prompt": "a"} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_stream_that_fails_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="its log says why"):
        list(client.completions.create(model="echo", prompt="one break", stream=True))


def test_the_real_engine_goes_on_with_a_text_and_with_its_tokens(artifact: Artifact) -> None:
    engine = OnnxEngine(artifact, ServeConfig(threads=1))

    async def answers() -> list[str]:
        ids = TokenIds(tuple(await engine.tokenize("What is it")))
        texts = []
        for prompt in ("What is it", ids):
            request = GenerationRequest(prompt, greedy(6))
            texts.append("".join([chunk.text async for chunk in engine.generate(request)]))
        await engine.close()
        return texts

    text, of_ids = asyncio.run(answers())
    assert text == of_ids


def test_a_text_may_claim_no_picture(artifact: Artifact, serve: object) -> None:
    engine = OnnxEngine(artifact, ServeConfig(threads=1))
    client = client_of(serve(engine))  # type: ignore[operator]
    for prompt in ("What is <image> it", [10**6], "word " * 10_000):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt=prompt)
        assert caught.value.param == "prompt"
