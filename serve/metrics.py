"""Figures for Prometheus, under the names that vLLM and OpenTelemetry's conventions have made usual.

A dashboard made for vLLM reads them as they are. What is told here is told of every request that was answered; the
content of none is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Chunk, Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a millisecond for a small model's token to minutes for a long answer of a large one.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# What OpenTelemetry calls all others by: clients could name any number.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_OTHER = "_OTHER"
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True)
class Gauges:
    """What is asked for when figures are read. kv_usage: share of the KV cache, 0 to 1."""

    running: Callable[[], float]
    waiting: Callable[[], float]
    kv_usage: Callable[[], float]


class Metrics:
    """model: the label of all of them."""

    def __init__(self, model: str, gauges: Gauges) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._gauge("vllm:num_requests_running", "Answers that are being made.", gauges.running)
        self._gauge("vllm:num_requests_waiting", "Answers that wait for a place.", gauges.waiting)
        self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", gauges.kv_usage)
        self._prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generation = self._counter("vllm:generation_tokens", "Tokens of answers.")
        self._queries = self._counter("vllm:prefix_cache_queries", "Tokens of prompts that were looked up.")
        self._hits = self._counter("vllm:prefix_cache_hits", "Tokens of prompts that an earlier request had left.")
        self._finished = Counter(
            "vllm:request_success",
            "Answers that came to their end.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Wait for a place.", _SECONDS)
        self._prompt_size = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._answer_size = self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        first, later, whole = "To an answer's first token.", "Between an answer's tokens.", "To an answer's end."
        self._first = [
            self._histogram("vllm:time_to_first_token_seconds", first, _SECONDS),
            self._histogram("gen_ai_server_time_to_first_token_seconds", first, _SECONDS),
        ]
        self._later = [
            self._histogram("vllm:inter_token_latency_seconds", later, _SECONDS),
            self._histogram("gen_ai_server_time_per_output_token_seconds", later, _SECONDS),
        ]
        self._whole = [
            self._histogram("vllm:e2e_request_latency_seconds", whole, _SECONDS),
            self._histogram("gen_ai_server_request_duration_seconds", whole, _SECONDS),
        ]
        self._http = Histogram(
            "http_server_request_duration_seconds",
            "To the last byte of a response, streams included.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def _gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        Gauge(name, what, ("model_name",), registry=self._registry).labels(self._model).set_function(read)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(name, what, ("model_name",), registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        label = "gen_ai_request_model" if name.startswith("gen_ai") else "model_name"
        return Histogram(name, what, (label,), buckets=buckets, registry=self._registry).labels(self._model)

    def waited(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def made(self, watch: "AnswerWatch", chunk: Chunk, now: float) -> None:
        """A chunk of an answer, which stands for one token, at a moment in seconds."""
        seconds = now - watch.last
        for histogram in self._later if watch.tokens else self._first:
            histogram.observe(seconds)
        new = chunk.usage.completion_tokens - watch.tokens
        self._generation.inc(new)
        watch.last, watch.tokens = now, chunk.usage.completion_tokens
        if chunk.finish_reason is not None:
            self._finished.labels(self._model, chunk.finish_reason).inc()
            self._answer_size.observe(chunk.usage.completion_tokens)
            for histogram in self._whole:
                histogram.observe(now - watch.start)

    def read(self, usage: Usage) -> None:
        """A prompt, once for each request."""
        self._prompt.inc(usage.prompt_tokens)
        self._queries.inc(usage.prompt_tokens)
        self._hits.inc(usage.cached_tokens)
        self._prompt_size.observe(usage.prompt_tokens)

    def sent(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response. route: one of the server's own, or empty; clients could name any number of others."""
        self._http.labels(method if method in _METHODS else _OTHER, route, status).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


@dataclass
class AnswerWatch:
    """How far an answer is. start, last: moments in seconds, of its request and of its newest token."""

    start: float
    last: float = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.last = self.start
