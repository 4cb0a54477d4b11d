"""Whether a token copies the KV cache: what attention takes by onnxruntime's own profile of the engine's sessions.

The engine binds one buffer as past and as present of a layer. Beside it stands what is usual, a present of its own, to
which attention copies the past. A copy takes the longer the more is copied: time that stays the same in a larger buffer
copies none of it.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.serve.engines.onnx_sessions import OnnxSessions

_ATTENTION = "GroupQueryAttention"
_SessionOptions = onnxruntime.SessionOptions
_LARGER = 8
_WARM = 2
"""Tokens before those that count."""


@dataclass(frozen=True)
class Way:
    """room: tokens that the engine's buffers hold; None for a present of its own."""

    name: str
    room: int | None


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one token by operator."""

    name: str
    by_operator: dict[str, float]

    @property
    def all(self) -> float:
        return sum(self.by_operator.values())

    @property
    def attention(self) -> float:
        return self.by_operator[_ATTENTION]


def profiles(folder: Path, past: int, threads: int, tokens: int) -> list[Profile]:
    """Of each way to hold the cache, where a token is decoded behind `past` others."""
    ways = (
        Way(f"one buffer, room for {past + _WARM + tokens}", past + _WARM + tokens),
        Way(f"one buffer, room for {_LARGER * past}", _LARGER * past),
        Way("past and present apart", None),
    )
    return [_profile(folder, way, past, threads, tokens) for way in ways]


def profile_rows(found: list[Profile]) -> Iterator[Row]:
    fitting, larger, apart = found
    name = f"attention of a token, a buffer {_LARGER} times as large against one that fits"
    yield Row(name, larger.attention / fitting.attention, "times the time", 1.2, at_most=True)
    name = "attention of a token, one buffer against past and present apart"
    yield Row(name, fitting.attention / apart.attention, "times the time", 0.8, at_most=True)


def profile_table(found: list[Profile], form: str) -> Table:
    table = markdown_table(f"past and present, {form}", "attention, ms a token", "all operators, ms a token")
    for each in found:
        table.add_row(each.name, f"{each.attention:.2f}", f"{each.all:.2f}")
    return table


def _profile(folder: Path, way: Way, past: int, threads: int, tokens: int) -> Profile:
    with tempfile.TemporaryDirectory() as place:
        with patch.object(onnxruntime, "SessionOptions", partial(_profiling, Path(place))):
            sessions = OnnxSessions(folder, threads, context=past + _WARM + tokens)
        cache = sessions.new_cache(way.room or past + _WARM + tokens)
        cache.lengths[:] = past
        if way.room is None:
            for node in sessions._decoder.get_outputs():
                if node.name.startswith("present."):
                    cache.binding.bind_output(node.name, "cpu")
        for step in range(_WARM + tokens):
            sessions.decode(sessions.one_token([0], [past + step]), cache)
        events = json.loads(Path(sessions._decoder.end_profiling()).read_text())
    return Profile(way.name, times_by_operator(events, tokens))


def _profiling(place: Path) -> Any:
    """The options that the engine then sets as ever."""
    options = _SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(place / "profile")
    return options


def times_by_operator(events: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Milliseconds of a token, each node's the median of its last `tokens` runs; it has one event a run, in order."""
    durations: dict[str, list[float]] = defaultdict(list)
    operator_of: dict[str, str] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["name"]].append(event["dur"] / 1000)
            operator_of[event["name"]] = event["args"]["op_name"]
    spent: dict[str, float] = defaultdict(float)
    for name, each in durations.items():
        spent[operator_of[name]] += float(np.median(each[-tokens:]))
    return dict(spent)
