"""Decoding and prefill on onnxruntime with weights in every form, beside each other and beside torch; what each form
takes on disk, in memory and to load; whether a token copies the KV cache; and the demo in every form.

make bench-onnx
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx_demo import demo
from onnx_exports import FORMS, TINY, Made, make
from onnx_footprint import footprint
from onnx_profile import profile_rows, profile_table, profiles
from random_llava import Shape, Tower
from results import Row, markdown_table, publish
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from slimdeploy.progress import Progress
from slimdeploy.serve.engines.onnx_sessions import KeyValueCache, OnnxSessions, Tokens

LARGE = Shape(
    vision=Tower(blocks=23, width=1024, mlp=4096, heads=16, key_value_heads=16),
    language=Tower(blocks=22, width=2048, mlp=5632, heads=32, key_value_heads=4),
    vocabulary=32000,
)
"""The 1B shape: TinyLlama's decoder behind LLaVA-1.5's tower."""
TORCH = "torch bf16"
BLOCKS, DYNAMIC = "MatMulNBits int4", "dynamic int8"


@dataclass(frozen=True)
class Scale:
    """tokens: of the prompt, a picture's among them. steps: tokens that follow in every round."""

    shape: Shape
    tokens: int
    steps: int
    rounds: int
    threads: int


FULL = Scale(LARGE, tokens=640, steps=24, rounds=5, threads=2)
QUICK = Scale(TINY, tokens=24, steps=3, rounds=2, threads=1)
GOALS = (
    ("decode", "packed int4 50%", BLOCKS, 1.7),
    ("decode", "packed int4 26:64", BLOCKS, 2.0),
    ("decode", "packed int8 50%", DYNAMIC, 1.5),
    ("decode", "packed int8 50%", TORCH, 3.0),
    ("prefill", "packed int8 50%", BLOCKS, 3.0),
    ("prefill", "packed int4 50%", BLOCKS, 3.0),
    ("prefill", "packed int8 50%", DYNAMIC, 0.95),
    ("prefill", "packed int4 50%", DYNAMIC, 0.95),
)
"""What is timed, ours, the peer, and how many times as fast ours has to be."""

Times = dict[str, dict[str, float]]
"""Median seconds by contender and by what is timed."""


class OnContender:
    """The decoder of an export, as the engine runs it."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.sessions = OnnxSessions(folder, scale.threads, scale.tokens + scale.steps)
        self._capacity = scale.tokens + scale.steps
        self._cache: KeyValueCache | None = None

    def prefill(self, embeddings: np.ndarray[Any, Any]) -> None:
        self._cache = self.sessions.new_cache(self._capacity)
        self._run(embeddings)

    def step(self, embeddings: np.ndarray[Any, Any]) -> None:
        self._run(embeddings)

    def _run(self, embeddings: np.ndarray[Any, Any]) -> None:
        assert self._cache is not None
        start = int(self._cache.lengths[0])
        self.sessions.decode(Tokens(embeddings, np.arange(start, start + embeddings.shape[1])[None]), self._cache)


class TorchContender:
    """The same decoder as transformers runs it."""

    def __init__(self, module: Any) -> None:
        self._language_model, self._head = module.model.language_model, module.lm_head
        self._cache = DynamicCache()

    def prefill(self, embeddings: np.ndarray[Any, Any]) -> None:
        self._cache = DynamicCache()
        self.step(embeddings)

    @torch.inference_mode()
    def step(self, embeddings: np.ndarray[Any, Any]) -> None:
        given = torch.from_numpy(embeddings).bfloat16()
        states = self._language_model(inputs_embeds=given, past_key_values=self._cache, use_cache=True)
        self._head(states.last_hidden_state[:, -1:])


def measure(contenders: Mapping[str, Any], scale: Scale) -> Times:
    """In every round each contender has its turn; the first round warms up."""
    rng = np.random.default_rng(0)
    width = scale.shape.language.width
    prompt = rng.normal(0, 0.02, (1, scale.tokens, width)).astype(np.float32)
    steps = rng.normal(0, 0.02, (scale.steps, 1, 1, width)).astype(np.float32)
    samples: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in contenders}
    for number in range(scale.rounds + 1):
        for name, contender in contenders.items():
            prefill = _seconds(lambda run=contender: run.prefill(prompt))
            decode = [_seconds(lambda run=contender, x=x: run.step(x)) for x in steps]
            if number > 0:
                samples[name]["prefill"].append(prefill)
                samples[name]["decode"].append(statistics.median(decode))
    return {
        name: {what: statistics.median(values) for what, values in timed.items()} for name, timed in samples.items()
    }


def measure_pictures(folders: Mapping[str, Path], scale: Scale) -> dict[str, float]:
    """Median seconds of one picture through the vision graph, by form."""
    pixels = np.random.default_rng(0).normal(size=(1, 3, scale.shape.image, scale.shape.image)).astype(np.float32)
    sessions = {name: OnnxSessions(folder, scale.threads, scale.tokens) for name, folder in folders.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(scale.rounds + 1):
        for name, session in sessions.items():
            seconds = _seconds(lambda run=session: run.encode_picture({"pixel_values": pixels}))
            if number > 0:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows_of(times: Times, scale: Scale) -> Iterator[Row]:
    for what, ours, peer, goal in GOALS:
        name = f"{ours} against {peer}, {what} of {scale.tokens if what == 'prefill' else 1}"
        yield Row(name, times[peer][what] / times[ours][what], "times as fast", goal, at_most=False)


def speed_table(times: Times, pictures: Mapping[str, float], scale: Scale) -> Table:
    table = markdown_table(
        "weights", "ms a token", "tokens/s", f"prefill of {scale.tokens}, s", "picture, s", "first token, s"
    )
    for name, timed in times.items():
        picture = pictures.get(name)
        table.add_row(
            name,
            f"{1000 * timed['decode']:.1f}",
            f"{1 / timed['decode']:.1f}",
            f"{timed['prefill']:.2f}",
            "not measured" if picture is None else f"{picture:.2f}",
            "not measured" if picture is None else f"{picture + timed['prefill']:.2f}",
        )
    return table


def footprint_table(made: Sequence[Made], scale: Scale) -> Table:
    table = markdown_table("weights", "files, MB", "peak memory, MB", "load, s", "export, s")
    for each in made:
        taken = footprint(each.folder, scale.tokens, scale.threads)
        sizes = (f"{size / 1e6:.0f}" for size in (taken.file_bytes, taken.peak_bytes))
        table.add_row(each.name, *sizes, f"{taken.load_s:.1f}", f"{each.seconds:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny model: figures mean nothing, nothing is written")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    torch.set_num_threads(scale.threads)
    with tempfile.TemporaryDirectory() as folder:
        table, rows = None, []
        if not arguments.quick:
            with Progress(Console(stderr=True)) as progress:
                table, rows = demo(Path(folder), progress)
        made, module = make(Path(folder), scale.shape, FORMS)
        contenders: dict[str, Any] = {each.name: OnContender(each.folder, scale) for each in made}
        times = measure({**contenders, TORCH: TorchContender(module)}, scale)
        del contenders, module
        pictures = measure_pictures({each.name: each.folder for each in made}, scale)
        details: list[Table | str] = [speed_table(times, pictures, scale), footprint_table(made, scale), _note(scale)]
        rows += rows_of(times, scale)
        profiled = profiles(made[0].folder, scale.tokens, scale.threads, scale.steps)
        details.append(profile_table(profiled, made[0].name))
        rows += profile_rows(profiled)
        if table:
            details.append(table)
    publish("onnx", rows, details, as_json=arguments.json, keep=not arguments.quick)


def _note(scale: Scale) -> str:
    return (
        f"Random weights of the 1B shape, {scale.threads} threads, medians of {scale.rounds} interleaved rounds. A "
        f"token is decoded behind {scale.tokens} others, the head included. A picture has 336 pixels a side and 576 "
        "tokens; the first token takes it and the prefill."
    )


if __name__ == "__main__":
    main()
