"""Answers under a grammar, by the whole server: valid, the same alone and together, and in nobody's way."""

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal

import openai
import pytest
from live_server import Serve
from pydantic import BaseModel, ConfigDict, Field
from requests_to_send import client_of, user
from running_engine import engine_of

import slimdeploy.serve.grammar as grammar_module
from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.kernels.library import library_file
from slimdeploy.serve.engine import Chunk, GenerationRequest, Grammar, Message, RequestError, Sampling
from slimdeploy.serve.engines.answer import Answer
from slimdeploy.serve.engines.onnx import OnnxEngine, _step_back
from slimdeploy.serve.runtime import LoadedModel

pytestmark = [
    pytest.mark.usefixtures("traced_once"),
    pytest.mark.skipif(library_file() is None, reason="the kernels were not built"),
]


class Thing(BaseModel):
    """What the tests ask for."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green"]
    count: int = Field(ge=0, le=99)
    sure: bool


SCHEMA = Thing.model_json_schema()
DIVISOR: dict[str, Any] = {"type": "integer", "multipleOf": 1000003}
GRAMMARS = [
    Grammar("json_schema", json.dumps(SCHEMA)),
    Grammar("regex", "(ab|cd){2,8} [0-9]{3}"),
    Grammar("choice", '["yes", "no", "maybe"]'),
    None,
    Grammar("json_schema", '{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}'),
]


def ask(grammar: Grammar | None, question: str = "What?", **sampling: Any) -> GenerationRequest:
    settings = Sampling(**{"max_tokens": 120, "temperature": 0.0, "grammar": grammar} | sampling)
    return GenerationRequest((Message("user", (question,)),), settings)


async def collect(engine: OnnxEngine, request: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def said(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_answers_are_the_same_alone_and_together(any_artifact: Artifact) -> None:
    async def together(engine: OnnxEngine) -> list[list[Chunk]]:
        return await asyncio.gather(*(collect(engine, ask(grammar)) for grammar in GRAMMARS * 2))

    alone = LoadedModel(any_artifact, threads=1)
    expected = [said([*alone.stream("What?", (), ask(grammar).sampling)]) for grammar in GRAMMARS]
    Thing.model_validate_json(expected[0])
    assert re.fullmatch("(ab|cd){2,8} [0-9]{3}", expected[1])
    assert expected[2] in ("yes", "no", "maybe")
    with engine_of(any_artifact) as engine:
        assert [said(chunks) for chunks in asyncio.run(together(engine))] == expected * 2


def test_an_answer_goes_on_from_what_was_cached(packed_artifact: Artifact) -> None:
    request = ask(GRAMMARS[0], "What is it, then, and how many of them?")
    with engine_of(packed_artifact, cache_mb=64) as engine:
        first, second = (asyncio.run(collect(engine, request)) for _ in range(2))
    assert second[-1].usage.cached_tokens > 16
    assert said(first) == said(second)


def test_an_answer_that_cannot_go_on_leaves_no_trace_in_the_log(
    packed_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot_go_on(*_: object) -> Chunk:
        raise RequestError("it is too complex")

    monkeypatch.setattr(Answer, "take", cannot_go_on)
    with engine_of(packed_artifact) as engine, pytest.raises(RequestError, match="too complex"):
        asyncio.run(collect(engine, ask(GRAMMARS[1])))
    assert [record for record in caplog.records if record.exc_info] == []


def test_seeds_repeat_and_differ(packed_artifact: Artifact) -> None:
    with engine_of(packed_artifact) as engine:
        drawn = [
            said(asyncio.run(collect(engine, ask(GRAMMARS[1], temperature=1.5, seed=seed)))) for seed in (1, 2, 1, 3)
        ]
    assert drawn[0] == drawn[2]
    assert len(set(drawn)) > 1


def test_a_grammar_that_explodes_keeps_no_token_of_others_waiting(packed_artifact: Artifact) -> None:
    async def gaps(engine: OnnxEngine, until: "asyncio.Future[Any]") -> list[float]:
        """Between the tokens of one answer after the other."""
        found = []
        while not until.done():
            async with aclosing(engine.generate(ask(None, max_tokens=150, ignore_eos=True))) as chunks:
                last = time.perf_counter()
                async for _ in chunks:
                    now = time.perf_counter()
                    found.append(now - last)
                    last = now
        return sorted(found)

    async def exploding(engine: OnnxEngine) -> tuple[list[float], list[float]]:
        quiet = await gaps(engine, asyncio.ensure_future(asyncio.sleep(1)))
        grammar = Grammar("json_schema", json.dumps(DIVISOR))
        start = time.perf_counter()
        refusals = asyncio.gather(*(engine.check_grammar(grammar) for _ in range(2)), return_exceptions=True)
        beside = await gaps(engine, refusals)
        assert all("longer than 1.5 s" in str(error) for error in refusals.result())
        assert time.perf_counter() - start < 6
        return quiet, beside

    with engine_of(packed_artifact, grammar_timeout_s=1.5) as engine:
        quiet, beside = asyncio.run(exploding(engine))
    assert len(beside) > 100
    assert beside[len(beside) // 2] < 3 * quiet[len(quiet) // 2] + 0.002
    assert beside[-1] < 1.2, "a compilation of 1.5 s was waited for"


@pytest.fixture
def real(serve: Serve, packed_artifact: Artifact) -> openai.OpenAI:
    """A client of a server with a model."""
    config = ServeConfig(threads=1, concurrency=2)
    return client_of(serve(OnnxEngine(packed_artifact, config), config))


def test_openais_client_parses_answers_into_its_own_models(real: openai.OpenAI) -> None:
    chat = real.chat.completions.parse(model="tiny", messages=user("What?"), response_format=Thing, n=2, seed=1)
    assert [type(choice.message.parsed) for choice in chat.choices] == [Thing, Thing]
    response = real.responses.parse(model="tiny", input="What?", text_format=Thing)
    assert isinstance(response.output_parsed, Thing)
    assert response.status == "completed"


def test_openais_formats_are_honoured_streamed_and_whole(real: openai.OpenAI) -> None:
    array = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}
    for strict in (True, False):
        form: Any = {"type": "json_schema", "json_schema": {"name": "list", "schema": array, "strict": strict}}
        whole = real.chat.completions.create(
            model="tiny", messages=user("What?"), response_format=form, temperature=0
        ).choices[0]
        stream = real.chat.completions.create(
            model="tiny", messages=user("What?"), response_format=form, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert whole.finish_reason == "stop"
        assert text == whole.message.content
        assert set(json.loads(text)) <= {1, 2}
    answer = real.chat.completions.create(
        model="tiny", messages=user("What?"), response_format={"type": "json_object"}, max_tokens=200, seed=3
    ).choices[0]
    assert (answer.message.content or "").startswith("{")
    cut = real.chat.completions.create(
        model="tiny", messages=user("What?"), response_format={"type": "json_object"}, max_tokens=1
    ).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("length", "{")


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[0-9]{2}:[0-9]{2}"}, "[0-9]{2}:[0-9]{2}"),
        ({"choice": ["red", "dark blue"]}, "red|dark blue"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"type": "null"}'}, "null"),
        ({"json": {"type": "null"}, "regex": None, "disable_fallback": False}, "null"),
    ],
)
def test_what_vllm_calls_structured_outputs_is_honoured(real: openai.OpenAI, wanted: Any, pattern: str) -> None:
    extra = {"structured_outputs": wanted}
    chat = real.chat.completions.create(model="tiny", messages=user("What?"), extra_body=extra).choices[0]
    completion = real.completions.create(model="tiny", prompt="What?", max_tokens=30, extra_body=extra).choices[0]
    assert re.fullmatch(pattern, chat.message.content or "")
    assert re.fullmatch(pattern, completion.text)
    assert chat.finish_reason == completion.finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
            'Unimplemented keys: ["not"]',
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "Unimplemented"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused_by_name(
    real: openai.OpenAI, body: dict[str, Any], param: str, reason: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        real.chat.completions.create(model="tiny", messages=user("What?"), extra_body=body, stream=stream)
    assert caught.value.param == param
    assert reason in caught.value.message


def test_a_grammar_that_is_tried_takes_no_place_and_is_waited_for_no_longer_than_a_place(
    serve: Serve, packed_artifact: Artifact
) -> None:
    config = ServeConfig(threads=1, concurrency=1, max_wait_s=2, grammar_timeout_s=4)
    client = client_of(serve(OnnxEngine(packed_artifact, config), config))
    regexes = [{"structured_outputs": {"regex": regex}} for regex in ("a+b", "known")]
    bodies: list[Any] = [{"structured_outputs": {"json": DIVISOR}}, *regexes, {}]

    def asked(body: Any) -> str:
        try:
            return str(client.chat.completions.create(model="tiny", messages=user("What?"), extra_body=body).id)
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.message}"

    assert asked(bodies[2]).startswith("chatcmpl-")
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(asked, bodies[0])
        time.sleep(0.2)
        others = [clients.submit(asked, body) for body in bodies[1:]]
        assert others[1].result().startswith("chatcmpl-")
        assert others[2].result().startswith("chatcmpl-")
        assert others[0].result().startswith("429 ")
        assert first.result().startswith("429 ")
    time.sleep(2.5)
    assert asked(bodies[1]).startswith("chatcmpl-")


def test_the_first_answer_under_a_grammar_finds_the_vocabulary_prepared(
    serve: Serve, packed_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing it halts every thread, and so all answers that go on."""
    config = ServeConfig(threads=1)
    client = client_of(serve(OnnxEngine(packed_artifact, config), config))
    monkeypatch.setattr(grammar_module, "_Vocabulary", lambda _: pytest.fail("it is prepared now"))
    extra = {"structured_outputs": {"choice": ["red"]}}
    answer = client.chat.completions.create(model="tiny", messages=user("What?"), extra_body=extra)
    assert answer.choices[0].message.content == "red"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities")
def test_threads_that_compile_step_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = priority()
    with ThreadPoolExecutor(1, initializer=_step_back) as thread:
        assert thread.submit(priority).result() == max(own, 10)
    monkeypatch.setattr(sys, "platform", "darwin")
    with ThreadPoolExecutor(1, initializer=_step_back) as thread:
        assert thread.submit(priority).result() == own
    assert priority() == own
