"""Servers side by side: a quick run measures what is there and says what is not, and its figures are what they say."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.measurements import RequestRecord, Run
from slimdeploy.progress import Progress

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; held = b'x' * 50_000_000; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_quick_run_measures_ours_and_says_which_peers_are_missing(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("serve_peers.py", "serve")
    load, *others = reversed(result["rows"])
    assert load["name"] == "load"
    assert load["value"] > 0
    assert all(row["value"] is None and row["unit"].endswith("was not measured") for row in others)
    assert "ours, packed int4 26:64" in result["table"]
    assert "vLLM is not measured: SLIMDEPLOY_BENCH_VLLM is not set." in result["table"]


def test_a_quick_run_measures_what_the_server_adds(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("serve_overhead.py", "serve_overhead")
    overhead, idle = result["rows"]
    assert overhead["name"] == "a token of 8 streams, server above engine"
    assert idle["name"] == "1000 idle connections"
    assert idle["met"]


def test_rows_compare_one_artifact_with_the_fastest_peer_that_was_measured() -> None:
    from serve_load import Figures
    from serve_peers import FIRST, Measured, rows_of
    from servers import llama_cpp, openvino

    def measured(speed: float, peak: float) -> Measured:
        figures = Figures(1 / speed, 30 / speed, 4 / speed, 20 * speed)
        return Measured(1, 0.0, 2.0, peak, dict.fromkeys((1, 4, 8), figures))

    found = {
        FIRST: measured(2, 1e9),
        "ours, another": measured(100, 1),
        llama_cpp.Q4_0: measured(0.5, 1),
        openvino.INT4: measured(1, 2e9),
    }
    rows = {row.name: row for row in rows_of(found)}
    assert rows["a token of one stream, against llama.cpp Q4_0, -fa off"].value == 4
    assert rows["the first token of one stream, against OpenVINO GenAI int4"].value == 2
    assert rows["the first token of one stream, against vLLM bf16"].value is None
    assert rows["an answer of 64 tokens, against OpenVINO GenAI int4"].value == 2
    assert rows["tokens a second of 8 streams, against OpenVINO GenAI int4"].value == 2
    assert rows["peak memory, against OpenVINO GenAI int4"].value == 0.5
    assert rows["load"].value == 2


def test_every_question_has_a_picture_of_its_own() -> None:
    from serve_load import questions

    samples = questions(48)
    pictures = [next(samples).images[0] for _ in range(20)]
    assert len(set(pictures)) == 20


def test_figures_are_of_whole_answers_alone() -> None:
    from serve_load import LoadError, figures_of

    def run(*requests: RequestRecord) -> Run:
        return Run("", "", 1, 64, 0, 2.0, requests)

    good = RequestRecord("a", 0.0, first_token=1.0, last_token=2.0, tokens_out=5)
    figures = figures_of(run(good, good), 5)
    assert (figures.ttft_s, figures.tpot_ms, figures.answer_s, figures.tokens_per_second) == (1.0, 250.0, 2.0, 5.0)
    with pytest.raises(LoadError, match="an answer has 5 tokens instead of 64"):
        figures_of(run(good), 64)
    with pytest.raises(LoadError, match="a request failed: timeout"):
        figures_of(run(good, RequestRecord("b", 0.0, error="timeout")), 5)


def test_memory_and_the_end_are_those_of_a_server_with_all_that_it_started(tmp_path: Path) -> None:
    from servers import Server, running, tree

    server = Server("two", lambda port: (sys.executable, "-c", SERVER, str(port)))
    with running(server, tmp_path / "log") as live:
        processes = tree(live.pid)
        assert len(processes) == 2
        assert _soon(lambda: live.most_memory() > 50_000_000)
        assert live.load_s > 0
    assert _soon(lambda: not any(_runs(process) for process in processes))


def test_a_server_does_not_outlive_who_is_told_to_end(tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from pathlib import Path
from servers import Server, running
server = Server("one", lambda port: (sys.executable, "-c", {SERVER!r}, str(port)))
with running(server, Path({str(tmp_path / "log")!r})) as live:
    print(live.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        process = int(asking.stdout.readline())
        asking.terminate()
        assert asking.wait(60) == 1
    assert _soon(lambda: not _runs(process))


def _soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    from servers import Server, ServerError, running

    server = Server("mute", lambda _: (sys.executable, "-c", "raise SystemExit('no such model')"))
    with pytest.raises(ServerError, match="mute did not start: no such model"), running(server, tmp_path / "log"):
        pass


def test_a_server_that_fails_is_left_out_with_a_word(tmp_path: Path) -> None:
    from serve_peers import measure
    from servers import Server

    server = Server("mute", lambda _: (sys.executable, "-c", "raise SystemExit('no such model')"))
    found, problems = measure([server], rounds=2, side=48, log=tmp_path / "log", progress=Progress.silent())
    assert found == {}
    assert problems == ["mute could not be measured: mute did not start: no such model."]
