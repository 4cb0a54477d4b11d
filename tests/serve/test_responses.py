"""/v1/responses by the client that people use: conversations that are sent whole, and events as they are documented."""

import json
from typing import Any

import httpx
import openai
import pytest
from echo_engine import TOO_LONG, EchoEngine
from openai.types.responses import Response, ResponseStreamEvent
from openai_types import exactly
from requests_to_send import picture

from slimdeploy.serve.engine import EncodedImage

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no input": ({"input": None}, "input"),
    "empty input": ({"input": ""}, "input[0]"),
    "no messages": ({"input": []}, "input"),
    "a tool's output": ({"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}]}, "input[0].type"),
    "a reference": ({"input": [{"type": "item_reference", "id": "1"}]}, "input[0].type"),
    "a file": ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    "a picture with a text": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": picture(), "text": "a"}]}]},
        "input[0].content[0]",
    ),
    "a description of no schema": ({"text": {"format": {"type": "text", "description": "a"}}}, "text.format"),
    "a stored picture": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": picture(), "file_id": "f"}]}]},
        "input[0].content[0].file_id",
    ),
    "no picture": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}]},
        "input[0].content[0].image_url",
    ),
    "an earlier response": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools"),
    "background": ({"background": True}, "background"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "effort": ({"reasoning": {"effort": "high"}}, "reasoning"),
    "sources": ({"include": ["file_search_call.results"]}, "include[0]"),
    "other text": ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    "a schema without a name": ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format"),
    "a schema of no format": ({"text": {"format": {"type": "text", "schema": {"a": 1}}}}, "text.format"),
    "options without stream": ({"stream_options": {}}, "stream_options"),
    "n": ({"n": 2}, "n"),
}


def test_what_was_asked_for_of_tools_is_repeated(url: str) -> None:
    asked = {"tool_choice": "none", "parallel_tool_calls": False}
    answer = httpx.post(f"{url}/v1/responses", json={"model": "echo", "input": "one"} | asked).json()
    assert asked.items() <= answer.items()


def events_of(url: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/responses", json={"model": "echo", "stream": True} | body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = []
    for event in answer.text.strip().split("\n\n"):
        name, data = event.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


def test_a_question_is_answered(client: openai.OpenAI, engine: EchoEngine) -> None:
    answer = client.responses.create(
        model="echo", input="one two three", instructions="brief", temperature=0.5, metadata={"a": "b"}
    )
    assert answer.output_text == "one two three"
    assert (answer.status, answer.incomplete_details, answer.error) == ("completed", None, None)
    assert (answer.instructions, answer.temperature, answer.metadata) == ("brief", 0.5, {"a": "b"})
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    prompt = engine.requests[0].prompt
    assert isinstance(prompt, tuple)
    assert [(message.role, message.parts) for message in prompt] == [
        ("system", ("brief",)),
        ("user", ("one two three",)),
    ]
    assert engine.requests[0].sampling.temperature == 0.5


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="echo", input="one two three", max_output_tokens=2)
    assert answer.output_text == "one two"
    assert answer.status == "incomplete"
    assert answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].type == "message"
    assert answer.output[0].status == "incomplete"


def test_a_conversation_goes_on_with_what_was_answered(client: openai.OpenAI, engine: EchoEngine) -> None:
    content = [
        {"type": "input_text", "text": "what"},
        {"type": "input_image", "image_url": picture(), "detail": "auto"},
    ]
    said: list[Any] = [{"role": "user", "content": content}]
    first = client.responses.create(model="echo", input=said)
    assert first.output_text == "what [5x3]"
    said += [item.model_dump() for item in first.output]
    said += [{"type": "message", "role": "user", "content": "more"}]
    assert client.responses.create(model="echo", input=said, store=True).output_text == "more"
    prompt = engine.requests[1].prompt
    assert isinstance(prompt, tuple)
    assert [message.role for message in prompt] == ["user", "assistant", "user"]
    assert isinstance(prompt[0].parts[1], EncodedImage)
    assert prompt[1].parts == ("what [5x3]",)


def test_the_stream_tells_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="one two three") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == "one two three"


def test_events_come_in_their_order_and_have_numbers(url: str) -> None:
    events = events_of(url, input="one two", max_output_tokens=2)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert events_of(url, input="one two", max_output_tokens=1)[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("logprobs", [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}])
def test_answers_and_events_have_openais_fields_and_no_others(url: str, logprobs: dict[str, Any]) -> None:
    body = {"model": "echo", "input": "one two", "instructions": "brief", "user": "ann"} | logprobs
    whole = exactly(Response, httpx.post(f"{url}/v1/responses", json=body).json())
    assert bool(whole.output[0].content[0].logprobs) == bool(logprobs)
    for event in events_of(url, **body):
        told = exactly(ResponseStreamEvent, event)
        if told.type == "response.output_text.delta":
            assert len(told.logprobs) == bool(logprobs)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_request_is_refused_by_name(url: str, case: str) -> None:
    change, param = REFUSED[case]
    answer = httpx.post(f"{url}/v1/responses", json={"model": "echo", "input": "a"} | change)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_what_an_engine_says_of_messages_is_said_of_the_input(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="echo", input=TOO_LONG)
    assert caught.value.param == "input"


def test_a_stream_that_fails_says_so(url: str) -> None:
    *_, last = events_of(url, input="one break")
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the server failed; its log says why"}
    exactly(ResponseStreamEvent, last)
