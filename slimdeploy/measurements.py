"""What a load client records, and what follows from it: percentiles, throughput, errors. Knows no network.

Definitions, as vLLM has them. TTFT: from sending a request to the first chunk that carries text. E2E: to the last chunk
with a choice, the one that carries the reason for the end included. TPOT: (E2E - TTFT) / (tokens out - 1), for
answers of more than one token. An empty answer has an E2E only. A failed request has none of them and counts as
infinitely slow in every percentile.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

LatencyMetric = Literal["ttft", "tpot", "e2e"]
LATENCY_METRICS: tuple[LatencyMetric, ...] = get_args(LatencyMetric)
TokenSource = Literal["usage", "chunks"]


@dataclass(frozen=True)
class RequestRecord:
    """One request. Times are seconds since the run began; None where the moment never came.

    first_token, last_token: arrival of the chunks that TTFT and E2E end with. tokens_out: as the server's usage says,
    else the number of chunks with text. answer: the text of a request that succeeded. error: a kind, for counting;
    empty for success. detail: what exactly went wrong.
    """

    sample_id: str
    start: float
    first_token: float | None = None
    last_token: float | None = None
    tokens_in: int | None = None
    tokens_out: int = 0
    token_source: TokenSource = "usage"
    answer: str | None = None
    error: str = ""
    detail: str = ""

    def latency(self, metric: LatencyMetric) -> float | None:
        """Milliseconds, or None where this request has no such time."""
        if self.error or self.last_token is None:
            return None
        if metric == "e2e":
            return 1e3 * (self.last_token - self.start)
        if self.first_token is None:  # an empty answer
            return None
        match metric:
            case "ttft":
                return 1e3 * (self.first_token - self.start)
            case "tpot":
                gaps = self.tokens_out - 1
                return 1e3 * (self.last_token - self.first_token) / gaps if gaps > 0 else None


@dataclass(frozen=True)
class Distribution:
    """Latencies of one metric in ascending order, in ms, and the number of requests that failed."""

    values: tuple[float, ...]
    failed: int = 0

    @staticmethod
    def of(values: Iterable[float], failed: int = 0) -> "Distribution":
        return Distribution(tuple(sorted(values)), failed)

    @property
    def count(self) -> int:
        return len(self.values) + self.failed

    @property
    def mean(self) -> float | None:
        """Over the requests that succeeded."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    def percentile(self, percent: float) -> float | None:
        """Linear interpolation between order statistics (numpy's default).

        None where it falls on a failed request, or where nothing was measured.
        """
        if not self.values:
            return None
        position = percent / 100 * (self.count - 1)
        below = math.floor(position)
        above = min(below + 1, self.count - 1) if position > below else below
        if above >= len(self.values):
            return None
        low, high = self.values[below], self.values[above]
        return low + (high - low) * (position - below)


@dataclass(frozen=True)
class Run:
    """A load, as it was offered and answered.

    requests: in the order of the samples, warm-up left out. duration_s: from the first request sent to the last end.
    """

    url: str
    model: str
    concurrency: int
    max_tokens: int
    warmup: int
    duration_s: float
    requests: tuple[RequestRecord, ...]

    @property
    def answers(self) -> list[str | None]:
        """One per request, None for a failed one."""
        return [request.answer for request in self.requests]

    @property
    def failed(self) -> int:
        return sum(bool(request.error) for request in self.requests)

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by kind, the commonest first."""
        return dict(Counter(request.error for request in self.requests if request.error).most_common())

    @property
    def tokens_out(self) -> int:
        """Generated tokens of the requests that succeeded."""
        return sum(request.tokens_out for request in self.requests if not request.error)

    @property
    def throughput(self) -> float:
        """Generated tokens per second over the run, all requests together."""
        return self.tokens_out / self.duration_s

    @property
    def requests_per_second(self) -> float:
        """Requests that succeeded, per second."""
        return (len(self.requests) - self.failed) / self.duration_s

    def distribution(self, metric: LatencyMetric) -> Distribution:
        values = (request.latency(metric) for request in self.requests)
        return Distribution.of((value for value in values if value is not None), self.failed)


def remarks(run: Run) -> list[str]:
    """Sentences on what a reader of the figures must know: failures, empty answers, tokens that had to be counted."""
    succeeded = [request for request in run.requests if not request.error]
    sentences = []
    if run.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in run.errors.items())
        sentences.append(
            f"{run.failed} of {len(run.requests)} requests failed ({kinds}); they count as infinitely slow."
        )
    if empty := _count(request.first_token is None for request in succeeded):
        sentences.append(f"{empty} answers were empty: they count in E2E, and are left out of TTFT and TPOT.")
    if untimed := _count(request.last_token is None for request in succeeded):
        sentences.append(f"{untimed} answers came without a choice, and are left out of E2E as well.")
    if counted := _count(request.token_source == "chunks" for request in succeeded):
        sentences.append(f"The server sent no usage for {counted} requests; their tokens out are chunks with text.")
    if single := _count(request.first_token is not None and request.tokens_out < 2 for request in succeeded):
        sentences.append(f"{single} answers have one token, and are left out of TPOT.")
    return sentences


def _count(conditions: Iterable[bool]) -> int:
    return sum(conditions)


def latency_table(run: Run) -> dict[LatencyMetric, dict[str, float | int | None]]:
    """Mean and percentiles in ms of every latency; None where failed requests reach down to that percentile."""
    return {metric: _row(run.distribution(metric)) for metric in LATENCY_METRICS}


def _row(distribution: Distribution) -> dict[str, float | int | None]:
    percentiles: Sequence[int] = (50, 90, 95, 99)
    return {
        "count": len(distribution.values),
        "mean": distribution.mean,
        **{f"p{percent}": distribution.percentile(percent) for percent in percentiles},
    }
