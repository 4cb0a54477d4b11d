"""What the server adds to its engine: to each token while eight are answered, and to memory for connections that idle.

make bench-serve-overhead
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onnx_exports import TINY
from onnx_speed import LARGE
from results import Row, markdown_table, publish
from rich.table import Table
from serve_load import ask
from serve_peers import CONTEXT, OURS, THREADS, TOKENS, artifact
from servers import Load, Running, ours, running

from slimdeploy.artifact import open_artifact
from slimdeploy.config import ServeConfig
from slimdeploy.samples import Sample
from slimdeploy.serve.engine import GenerationRequest, Message, Sampling
from slimdeploy.serve.engines.onnx import OnnxEngine

STREAMS = 8
ROUNDS = 5
CONNECTIONS = 1000
SETTINGS = ServeConfig(concurrency=STREAMS, threads=THREADS, cache_mb=0)
_ASKED = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Pair:
    """Milliseconds a token, in rounds that took turns."""

    engine: Sequence[float]
    server: Sequence[float]

    @property
    def overhead(self) -> float:
        return statistics.median(self.server) - statistics.median(self.engine)


@dataclass(frozen=True)
class Idle:
    """Bytes that the server's memory grew by, and the connections that it held open then."""

    grown: int
    connections: int


def compare(live: Running, engine: OnnxEngine, rounds: int) -> Pair:
    """Of the same questions. They are short texts, so that steps in which another's prompt is read are few."""
    found = Pair([], [])
    with asyncio.Runner() as runner:
        for number in range(rounds + 1):
            texts = [f"How many are there? ({number:03d}, {index})" for index in range(STREAMS)]
            samples = [Sample(text, text) for text in texts]
            of_engine = runner.run(ask_engine(engine, texts))
            of_server = ask(live.url, iter(samples), STREAMS, TOKENS).tpot_ms
            if number > 0:  # the first round warms up
                found.engine.append(of_engine)
                found.server.append(of_server)
    return found


async def ask_engine(engine: OnnxEngine, texts: Sequence[str]) -> float:
    """Median ms a token of questions that are asked at the same time."""
    return statistics.median(await asyncio.gather(*(_ms_a_token(engine, text) for text in texts)))


async def _ms_a_token(engine: OnnxEngine, text: str) -> float:
    sampling = Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    moments = []
    async with aclosing(engine.generate(GenerationRequest((Message("user", (text,)),), sampling))) as chunks:
        async for _ in chunks:
            moments.append(time.perf_counter())
    return 1e3 * (moments[-1] - moments[0]) / (len(moments) - 1)


def idle(live: Running) -> Idle:
    """Connections are opened, each asks once, and none is closed before the server's memory is read."""
    return asyncio.run(_idle(live))


async def _idle(live: Running) -> Idle:
    address = urlsplit(live.url)
    before = _resident(live.pid)
    pairs = [await asyncio.open_connection(address.hostname, address.port) for _ in range(CONNECTIONS)]
    try:
        for _, writer in pairs:
            writer.write(_ASKED)
        for reader, _ in pairs:
            await reader.readuntil(b"\r\n\r\n")
        grown = _resident(live.pid) - before
        return Idle(grown, sum(not reader.at_eof() for reader, _ in pairs))
    finally:
        for _, writer in pairs:
            writer.close()


def _resident(pid: int) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(status["VmRSS"].split()[0])


def table_of(pair: Pair) -> Table:
    table = markdown_table(f"{STREAMS} streams", "ms a token", "least", "most")
    for name, values in (("engine", pair.engine), ("server", pair.server)):
        table.add_row(name, *(f"{of(values):.2f}" for of in (statistics.median, min, max)))
    return table


def rows_of(pair: Pair, found: Idle) -> Iterator[Row]:
    yield Row(f"a token of {STREAMS} streams, server above engine", pair.overhead, "ms", 1, at_most=True)
    yield Row(f"{found.connections} idle connections", found.grown / 1e6, "MB", 100, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny model: figures mean nothing, nothing is written")
    parser.add_argument("--folder", type=Path, help="where bench-serve keeps models and exports")
    arguments = parser.parse_args()
    shape, rounds = (TINY, 1) if arguments.quick else (LARGE, ROUNDS)
    allow_open_files(CONNECTIONS)
    with tempfile.TemporaryDirectory() as made:
        form = OURS[1]
        path = artifact((arguments.folder or Path(made)).absolute(), shape, form)
        server = ours.server(form.name, path, Load(STREAMS, CONTEXT, THREADS))
        engine = OnnxEngine(open_artifact(path), SETTINGS)
        with running(server, Path(made) / "server.log") as live:
            found = idle(live)  # before answers, whose memory is given back later
            pair = compare(live, engine, rounds)
        asyncio.run(engine.close())
    note = (
        f"Decoder of the 1B shape, {form.name}, {THREADS} threads; questions of a few words, {TOKENS} tokens out, "
        f"{rounds} rounds in which both took turns."
    )
    rows, details = list(rows_of(pair, found)), [table_of(pair), note]
    publish("serve_overhead", rows, details, as_json=arguments.json, keep=not arguments.quick)


def allow_open_files(count: int) -> None:
    """For this process and those that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * count + 500), most))


if __name__ == "__main__":
    main()
