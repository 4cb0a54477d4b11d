"""What answers gain from each other, and lose while the prompt of one more is read: the engine, without HTTP.

make bench-serve-batching
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from onnx_exports import TINY
from onnx_speed import LARGE
from results import Row, markdown_table, publish
from rich.table import Table
from serve_overhead import SETTINGS, STREAMS
from serve_peers import OURS, THREADS, artifact

from slimdeploy.artifact import open_artifact
from slimdeploy.serve.engine import GenerationRequest, Message, Sampling
from slimdeploy.serve.engines.onnx import OnnxEngine

ROUNDS = 3
TOKENS = 64
LONG_ANSWER = 600
"""Tokens of answers that go on until a prompt is read."""
PROMPT = 600
"""Letters of the prompt: each is a token of the tokenizer that belongs to random weights."""
BEFORE = 24
"""Tokens that every answer has before a prompt comes, which show how fast they are in quiet."""
RUNNING = (1, 4, STREAMS - 1)


@dataclass(frozen=True)
class Reading:
    """Milliseconds of a token of those that run, in quiet and while a prompt is read; seconds until it is."""

    quiet_ms: float
    then_ms: float
    first_token_s: float


async def moments_of(engine: OnnxEngine, text: str, tokens: int, moments: list[float]) -> None:
    """Ask, and append the moment of every token."""
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
    async with aclosing(engine.generate(GenerationRequest((Message("user", (text,)),), sampling))) as chunks:
        async for _ in chunks:
            moments.append(time.perf_counter())


async def tokens_per_second(engine: OnnxEngine, streams: int, number: int) -> float:
    """Of short questions that are asked at the same time; from the first request to the last token."""
    asked = [list[float]() for _ in range(streams)]
    start = time.perf_counter()
    await asyncio.gather(
        *(moments_of(engine, f"How many? ({number}, {i})", TOKENS, each) for i, each in enumerate(asked))
    )
    return streams * TOKENS / (max(each[-1] for each in asked) - start)


async def reading(engine: OnnxEngine, running: int, number: int) -> Reading:
    """A prompt comes once every running answer has its first tokens."""
    answers = [list[float]() for _ in range(running)]
    tasks = [
        asyncio.create_task(moments_of(engine, f"Tell me more. ({number}, {i})", LONG_ANSWER, each))
        for i, each in enumerate(answers)
    ]
    while min(map(len, answers)) < BEFORE:
        await asyncio.sleep(0.001)
    first: list[float] = []
    start = time.perf_counter()
    await moments_of(engine, f"{number} ".ljust(PROMPT, "m"), 1, first)
    assert max(map(len, answers)) < LONG_ANSWER, "an answer ended before the prompt was read"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    last_came = max(each[0] for each in answers)  # until then questions were read
    return Reading(_ms_a_token(answers, last_came, start), _ms_a_token(answers, start, first[0]), first[0] - start)


def _ms_a_token(answers: Sequence[Sequence[float]], start: float, end: float) -> float:
    """Of those between two moments."""
    found = [[moment for moment in each if start < moment <= end] for each in answers]
    return 1e3 * sum(each[-1] - each[0] for each in found) / sum(len(each) - 1 for each in found)


@dataclass(frozen=True)
class Found:
    """rates: tokens a second, by streams. readings: by answers that run. A round each."""

    rates: dict[int, list[float]]
    readings: dict[int, list[Reading]]

    def rate(self, streams: int) -> float:
        return statistics.median(self.rates[streams])

    def slower(self, running: int) -> float:
        """Times as long as in quiet that a token takes."""
        return statistics.median(each.then_ms / each.quiet_ms for each in self.readings[running])


async def measure(engine: OnnxEngine, rounds: int) -> Found:
    found = Found({1: [], STREAMS: []}, {running: [] for running in RUNNING})
    await tokens_per_second(engine, STREAMS, -1)  # warms up
    for number in range(rounds):
        for streams, rates in found.rates.items():
            rates.append(await tokens_per_second(engine, streams, number))
        for running, readings in found.readings.items():
            readings.append(await reading(engine, running, number))
    await engine.close()
    return found


def tables_of(found: Found) -> Sequence[Table]:
    rates = markdown_table("streams", "tokens/s", "least", "most")
    for streams, each in found.rates.items():
        rates.add_row(str(streams), *(f"{of(each):.1f}" for of in (statistics.median, min, max)))
    readings = markdown_table("answers", "ms a token", "while a prompt is read", "times", "its first token, s")
    for running, several in found.readings.items():
        figures = ([getattr(each, name) for each in several] for name in ("quiet_ms", "then_ms", "first_token_s"))
        quiet, then, first = map(statistics.median, figures)
        readings.add_row(str(running), f"{quiet:.1f}", f"{then:.1f}", f"{found.slower(running):.2f}", f"{first:.2f}")
    return [rates, readings]


def rows_of(found: Found) -> Iterator[Row]:
    ratio = found.rate(STREAMS) / found.rate(1)
    yield Row(f"tokens a second of {STREAMS} streams, against one", ratio, "times", 2.5, at_most=False)
    for running in RUNNING:
        name = f"a token of {running} running while a prompt of {PROMPT} tokens is read, against quiet"
        yield Row(name, found.slower(running), "times", 2, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny model: figures mean nothing, nothing is written")
    parser.add_argument("--folder", type=Path, help="where bench-serve keeps models and exports")
    arguments = parser.parse_args()
    shape, rounds = (TINY, 1) if arguments.quick else (LARGE, ROUNDS)
    with tempfile.TemporaryDirectory() as made:
        form = OURS[1]
        path = artifact((arguments.folder or Path(made)).absolute(), shape, form)
        found = asyncio.run(measure(OnnxEngine(open_artifact(path), SETTINGS), rounds))
    note = (
        f"Decoder of the 1B shape, {form.name}, {THREADS} threads; questions of a few words, {TOKENS} tokens out. A "
        f"prompt of {PROMPT} tokens comes while answers run. Medians of {rounds} rounds."
    )
    details = [*tables_of(found), note]
    publish("serve_batching", list(rows_of(found)), details, as_json=arguments.json, keep=not arguments.quick)


if __name__ == "__main__":
    main()
