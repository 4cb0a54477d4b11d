"""Whether a token copies the KV cache: what attention takes by onnxruntime's own profile.

The engine binds one buffer as past and as present of a layer. Beside it stands what is usual, a present of its own, to
which attention copies the past. A copy takes the longer the more is copied: time that stays the same in a larger buffer
copies none of it.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.kernels.operators import register_operators

DECODER = "decoder_model_merged.onnx"
_ATTENTION = "GroupQueryAttention"
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
        Way(f"one buffer, room for {past + 1}", past + 1),
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


def profile_table(found: list[Profile]) -> Table:
    table = markdown_table("past and present", "attention, ms a token", "all operators, ms a token")
    for each in found:
        table.add_row(each.name, f"{each.attention:.2f}", f"{each.all:.2f}")
    return table


def _profile(folder: Path, way: Way, past: int, threads: int, tokens: int) -> Profile:
    with tempfile.TemporaryDirectory() as place:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(place) / "profile")
        register_operators(options)
        session = onnxruntime.InferenceSession(str(folder / DECODER), options, providers=["CPUExecutionProvider"])
        binding = _bound(session, way, past)
        for _ in range(_WARM + tokens):
            session.run_with_iobinding(binding)
        events = json.loads(Path(session.end_profiling()).read_text())
    return Profile(way.name, times_by_operator(events, tokens))


def _bound(session: Any, way: Way, past: int) -> Any:
    """Every run decodes the token at place `past`: its inputs never change."""
    rng, binding = np.random.default_rng(0), session.io_binding()
    for node in session.get_inputs():
        if node.name.startswith("past_key_values."):
            shape = (1, node.shape[1], past if way.room is None else way.room, node.shape[3])
            value = onnxruntime.OrtValue.ortvalue_from_numpy(rng.normal(size=shape).astype(np.float32))
            binding.bind_ortvalue_input(node.name, value)
            present = node.name.replace("past_key_values", "present")
            if way.room is None:
                binding.bind_output(present, "cpu")
            else:
                binding.bind_ortvalue_output(present, value)
        elif node.name == "inputs_embeds":
            binding.bind_cpu_input(node.name, rng.normal(0, 0.02, (1, 1, node.shape[2])).astype(np.float32))
        elif node.name == "attention_mask":
            binding.bind_cpu_input(node.name, np.ones((1, past + 1), np.int64))
        else:
            binding.bind_cpu_input(node.name, np.full((1, 1), past, np.int64))
    binding.bind_output("logits", "cpu")
    return binding


def times_by_operator(events: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Of the last `tokens` runs: every node has one event a run, in the order of runs."""
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
