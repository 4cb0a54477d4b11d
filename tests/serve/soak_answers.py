"""What came of a request of the soak: a whole answer, an error of OpenAI's shape, or something that must not be."""

import json
from collections.abc import Sequence
from typing import Any

from soak_requests import Ask
from soak_wire import Response

_KINDS = frozenset({"invalid_request_error", "rate_limit_error"})


class WrongError(Exception):
    """The server said what it must not."""


def outcome(ask: Ask, response: Response) -> str:
    """In a word or two. Raises WrongError."""
    if response.status not in ask.statuses:
        raise WrongError(f"status {response.status}, not one of {sorted(ask.statuses)}: {response.body[:300]!r}")
    if response.status != 200:
        require_error(response)
        return f"refused {response.status}"
    if ask.stream:
        return _streamed(ask, events_of(response.body))
    whole = json.loads(response.body)
    if ask.api == "response":
        _require(whole["status"] in ("completed", "incomplete"), whole)
    else:
        reasons = [choice["finish_reason"] for choice in whole["choices"]]
        _require(len(reasons) == ask.count and set(reasons) <= {"stop", "length"}, whole)
    return "answered"


def events_of(body: bytes) -> list[Any]:
    """The data of each, as JSON; the last of them may be "[DONE]"."""
    texts = body.decode().split("\n\n")
    _require(texts.pop() == "", body[-200:])
    found = []
    for text in texts:
        data = text.rpartition("data: ")[2]
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def _streamed(ask: Ask, events: Sequence[Any]) -> str:
    if ask.api == "response":
        kind = events[-1]["type"]
        _require([event["sequence_number"] for event in events] == list(range(len(events))), "numbers")
        _require(kind in ("response.completed", "response.incomplete"), events[-1])
        return "answered"
    if isinstance(events[-1], dict) and "error" in events[-1]:
        _require(events[-1]["error"]["type"] in _KINDS, events[-1])
        return "ended with an error event"
    _require(events[-1] == "[DONE]", events[-1])
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    ended = sorted(choice["index"] for choice in choices if choice["finish_reason"] in ("stop", "length"))
    _require(ended == list(range(ask.count)), f"ends of {ended}")
    return "answered"


def require_error(response: Response) -> None:
    """Of OpenAI's shape. Raises WrongError."""
    error = json.loads(response.body)["error"]
    _require(set(error) == {"message", "type", "param", "code"}, error)
    _require(error["type"] in _KINDS and bool(error["message"]), error)
    if response.status == 429:
        _require(int(response.headers.get("retry-after", 0)) >= 1, "429 without Retry-After")


def _require(holds: bool, found: object) -> None:
    if not holds:
        raise WrongError(f"{str(found)[:300]}")
