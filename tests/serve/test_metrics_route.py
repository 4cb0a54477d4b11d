"""/metrics tells what was done, by the names that dashboards ask for, and grows with nothing that clients make up."""

import re
import time
from pathlib import Path

import httpx
import pytest
from echo_engine import EchoEngine
from live_server import Serve
from prometheus_client.parser import text_string_to_metric_families
from requests_to_send import user

from slimdeploy.config import ServeConfig

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
(FIGURES,) = re.findall(r"^## Figures\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
NAMES = re.findall(r"`((?:vllm:|gen_ai_|http_)\w+)`", FIGURES)
Samples = dict[tuple[str, str], float]


def read(url: str) -> Samples:
    """By a sample's name, and its labels but the model's."""
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = " ".join(sample.labels[name] for name in sorted(sample.labels) if "model" not in name)
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found


def grown(url: str, before: Samples, name: str, labels: str = "") -> float:
    """By how much since then. Figures of a response are there a moment after it."""
    for _ in range(50):
        if growth := read(url).get((name, labels), 0) - before.get((name, labels), 0):
            return growth
        time.sleep(0.02)
    return 0


def ask(url: str, words: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"model": "echo", "messages": user(words)} | fields)


def test_every_name_of_the_page_is_there_and_no_other(url: str) -> None:
    assert len(NAMES) > 15
    ask(url, "one two")
    found = {name for name, _ in read(url)}
    for name in NAMES:
        assert {name, f"{name}_count"} & found, name
    known = {f"{name}{end}" for name in NAMES for end in ("", "_count", "_sum", "_bucket", "_created")}
    assert {name for name in found if not name.endswith("_created")} <= known


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_and_answers_are_counted(url: str, stream: bool) -> None:
    before = read(url)
    ask(url, "one two three", n=2, stream=stream)
    ask(url, "one two three", max_tokens=1, stream=stream)
    assert grown(url, before, "vllm:request_success_total", "stop") == 2
    assert grown(url, before, "vllm:request_success_total", "length") == 1
    assert grown(url, before, "vllm:prompt_tokens_total") == 6  # a prompt counts once, whatever its answers
    assert grown(url, before, "vllm:generation_tokens_total") == 7
    assert grown(url, before, "vllm:prefix_cache_queries_total") == 6
    assert grown(url, before, "vllm:prefix_cache_hits_total") == 4
    assert grown(url, before, "vllm:request_queue_time_seconds_count") == 3
    assert grown(url, before, "vllm:request_prompt_tokens_sum") == 6
    assert grown(url, before, "vllm:request_generation_tokens_sum") == 7
    for name in ("vllm:time_to_first_token_seconds", "gen_ai_server_time_to_first_token_seconds"):
        assert grown(url, before, f"{name}_count") == 3
    for name in ("vllm:inter_token_latency_seconds", "gen_ai_server_time_per_output_token_seconds"):
        assert grown(url, before, f"{name}_count") == 4
    for name in ("vllm:e2e_request_latency_seconds", "gen_ai_server_request_duration_seconds"):
        assert grown(url, before, f"{name}_count") == 3


@pytest.mark.parametrize("prompts", [["one two"] * 2, [[1, 2]] * 2])
def test_a_prompt_that_is_sent_twice_counts_twice(url: str, prompts: list[object]) -> None:
    before = read(url)
    usage = httpx.post(f"{url}/v1/completions", json={"model": "echo", "prompt": prompts, "n": 2}).json()["usage"]
    assert usage["prompt_tokens"] == 4
    assert grown(url, before, "vllm:prompt_tokens_total") == 4
    assert grown(url, before, "vllm:request_prompt_tokens_count") == 2


def test_times_are_those_that_a_client_sees(serve: Serve) -> None:
    url = serve(EchoEngine(seconds_per_token=0.1))
    before = read(url)
    ask(url, "one two three")
    assert 0.1 <= grown(url, before, "vllm:time_to_first_token_seconds_sum") < 0.5
    assert 0.2 <= grown(url, before, "vllm:inter_token_latency_seconds_sum") < 1
    assert 0.3 <= grown(url, before, "vllm:e2e_request_latency_seconds_sum") < 1.5


def test_who_runs_and_who_waits_is_seen_while_it_is_so(serve: Serve) -> None:
    url = serve(EchoEngine(seconds_per_token=0.1), ServeConfig(concurrency=1))
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=_two_long_answers()) as response:
        pieces = response.iter_raw()  # which would hang up if it were let go
        next(pieces)
        now = read(url)
        assert (now["vllm:num_requests_running", ""], now["vllm:num_requests_waiting", ""]) == (1, 1)
        assert now["vllm:kv_cache_usage_perc", ""] == 0.25
    for _ in range(100):
        now = read(url)
        if now["vllm:num_requests_running", ""] == now["vllm:num_requests_waiting", ""] == 0:
            return
        time.sleep(0.02)
    pytest.fail("a place is still taken")


def _two_long_answers() -> dict[str, object]:
    return {"model": "echo", "messages": user("word " * 100), "n": 2, "stream": True}


def test_what_is_refused_is_counted_by_its_status(url: str) -> None:
    before = read(url)
    ask(url, "one", temperature=-1)
    assert grown(url, before, "http_server_request_duration_seconds_count", "POST 400 /v1/chat/completions") == 1
    assert read(url).get(("vllm:generation_tokens_total", "")) == before["vllm:generation_tokens_total", ""]


def test_nothing_that_clients_make_up_becomes_a_label(url: str) -> None:
    httpx.get(f"{url}/v1/models/none")
    httpx.get(f"{url}/nowhere")
    httpx.request("BREW", f"{url}/")
    read(url)
    before = len(read(url))
    for number in range(30):
        httpx.get(f"{url}/v1/models/none-{number}")
        httpx.get(f"{url}/nowhere-{number}?key={number}")
        httpx.request(f"BREW{number}", f"{url}/")
        ask(url, "one", model=f"model-{number}")
    assert len(read(url)) <= before + 25  # one more status of one more route, with its buckets


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PATCH"])
def test_methods_that_there_are_are_told_apart(url: str, method: str) -> None:
    before = read(url)
    httpx.request(method, f"{url}/nowhere")
    assert grown(url, before, "http_server_request_duration_seconds_count", f"{method} 404 ") == 1
