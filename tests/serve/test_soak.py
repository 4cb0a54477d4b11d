"""More load than the server can bear, from clients of every kind: nobody is lost, and nothing is left behind.

`make soak` lets it run for ten minutes and prints a table; SOAK_SECONDS and SOAK_SEED say for how long, and which load.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from soak_clients import KINDS, SHARED_KEY, Client, Soak, asks, probe
from soak_probe import probes, tokens_of
from soak_requests import MAX_BODY_MB
from soak_server import Figures, ServerProcess, server_process

from slimdeploy.artifact import Artifact
from slimdeploy.kernels.library import library_file

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "6"))
GROWTH = 0.05
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio comes to have for what blocks."""
WARM = max(0.25, 10 / SECONDS)
"""Of the time, after which memory counts: caches are full then, and all threads that a pool has are there."""
_FIRST_QUESTIONS = 25
SETTINGS = f"""threads = 1
concurrency = 3
max_waiting = 8
max_wait_s = 1.5
cache_mb = 0.2
max_body_mb = {MAX_BODY_MB}
tokens_per_minute = 20000
log_format = "json"
"""


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_nobody_is_lost_and_nothing_is_left_behind(packed_artifact: Artifact, tmp_path: Path) -> None:
    keys = [Client(Soak(0, SEED), kind, number).key for kind, (count, _) in KINDS.items() for number in range(count)]
    lines = "".join(f"client-{number}:{key}\n" for number, key in enumerate(sorted(set(keys))))
    with server_process(packed_artifact, tmp_path, SETTINGS, lines) as server:
        soak = Soak(server.port, SEED)
        before, during = asyncio.run(_load(soak, server))
        after, metrics = _at_rest(server, before)
        quick = asyncio.run(_seconds_of_a_question(soak))
    table = _table(soak, before, during, after, metrics)
    sys.stdout.write(table)
    assert not soak.lost, "\n".join(soak.lost[:20])
    assert quick < 5
    assert after.files <= before.files
    assert after.threads <= before.threads + POOL
    assert _resident(during, 0.9, 1.0) <= (1 + GROWTH) * _resident(during, WARM, WARM + 0.1), table
    assert "Traceback" not in server.log.read_text()


async def _load(soak: Soak, server: ServerProcess) -> tuple[Figures, list[Figures]]:
    """Figures before it and in the course of it."""
    asker = Client(soak, "probe", 0)
    for ask in probes():
        soak.right[ask] = tokens_of(ask, await asker.ask(ask))
    for _ in range(_FIRST_QUESTIONS):  # what is loaded with its first use is no growth
        await asks(asker)
    await asker.hang_up()
    await asyncio.sleep(0.5)  # until the server has noticed
    before = server.figures()
    soak.end = time.monotonic() + SECONDS
    clients = [(Client(soak, kind, number), act) for kind, (count, act) in KINDS.items() for number in range(count)]
    running = asyncio.gather(*(client.run(act) for client, act in clients))
    during = []
    while time.monotonic() < soak.end:
        await asyncio.sleep(0.1)
        during.append(server.figures())
    await running
    return before, during


def _at_rest(server: ServerProcess, before: Figures) -> tuple[Figures, dict[str, float]]:
    """Once all have left, which takes a moment; asserts that nothing is running, waiting or kept in the KV cache."""
    end = time.monotonic() + 10
    while True:
        metrics, figures = server.metrics(SHARED_KEY), server.figures()
        busy = [
            metrics[f"vllm:{name}"] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        ]
        if not any(busy) and figures.files <= before.files:
            return figures, metrics
        assert time.monotonic() < end, (busy, before, figures)
        time.sleep(0.1)


async def _seconds_of_a_question(soak: Soak) -> float:
    start = time.monotonic()
    client = Client(soak, "probe", 1)
    await probe(client)
    await client.hang_up()
    return time.monotonic() - start


def _between(figures: Sequence[Figures], start: float, end: float) -> Sequence[Figures]:
    return figures[int(start * len(figures)) : int(end * len(figures))]


def _resident(figures: Sequence[Figures], start: float, end: float) -> float:
    """Bytes: the median in a part of the time, because bodies and pictures come and go."""
    return statistics.median(each.resident for each in _between(figures, start, end))


def _table(soak: Soak, before: Figures, during: Sequence[Figures], after: Figures, metrics: dict[str, float]) -> str:
    rows = [("client", "what came of it", "times")]
    rows += [(kind, came, str(times)) for (kind, came), times in sorted(soak.outcomes.items())]
    megabytes = {
        "before": before.resident,
        "warm": _resident(during, WARM, WARM + 0.1),
        "end": _resident(during, 0.9, 1.0),
        "peak": max(each.resident for each in during),
        "at rest": after.resident,
    }
    rows += [("memory, MB", when, f"{size / 1e6:.1f}") for when, size in megabytes.items()]
    tenths = " ".join(f"{_resident(during, start / 10, (start + 1) / 10) / 1e6:.0f}" for start in range(10))
    rows += [("memory, MB", "in each tenth of the time", tenths)]
    rows += [("threads", "before, at rest", f"{before.threads}, {after.threads}")]
    rows += [("files", "before, at rest", f"{before.files}, {after.files}")]
    rows += [("tokens", what, f"{metrics[f'vllm:{what}_tokens_total']:.0f}") for what in ("prompt", "generation")]
    rows += [("ties", "of greedy answers, largest lead", f"{len(soak.ties)}, {max(soak.ties, default=0):.4f}")]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{kind:{widths[0]}}  {came:{widths[1]}}  {times:>9}" for kind, came, times in rows]
    return f"\n{SECONDS:g} s, seed {SEED}\n" + "\n".join(lines) + "\n"
