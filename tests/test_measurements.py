"""Percentiles are numpy's; a failed request is infinitely slow; tokens and times follow vLLM's definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.measurements import Distribution, RequestRecord, Run, latency_table

MILLISECONDS = st.floats(0.01, 1e5)


@given(st.lists(MILLISECONDS, min_size=1, max_size=60), st.floats(0.1, 100))
def test_percentiles_equal_numpys(values: list[float], percent: float) -> None:
    assert Distribution.of(values).percentile(percent) == pytest.approx(np.percentile(values, percent))


@given(st.lists(MILLISECONDS, min_size=1, max_size=60), st.integers(1, 60), st.floats(0.1, 100))
def test_a_failure_counts_as_infinitely_slow(values: list[float], failed: int, percent: float) -> None:
    found = Distribution.of(values, failed).percentile(percent)
    everything = sorted(values) + [1e12] * failed
    reference = float(np.percentile(everything, percent))
    if found is None:
        assert reference > 1e5
    else:
        assert found == pytest.approx(reference)


def test_nothing_measured_has_no_percentile() -> None:
    empty = Distribution(())
    assert (empty.percentile(50), empty.mean, empty.count) == (None, None, 0)


def record(**more: object) -> RequestRecord:
    values = {"sample_id": "s", "start": 1.0, "first_token": 1.2, "last_token": 1.5, "tokens_out": 4, "answer": "a"}
    return RequestRecord(**(values | more))  # type: ignore[arg-type]


def test_latencies_of_one_request() -> None:
    assert record().latency("ttft") == pytest.approx(200)
    assert record().latency("e2e") == pytest.approx(500)
    assert record().latency("tpot") == pytest.approx(100)


@pytest.mark.parametrize(("tokens", "expected"), [(1, None), (0, None), (2, 300)])
def test_one_token_has_no_tpot(tokens: int, expected: float | None) -> None:
    assert record(tokens_out=tokens).latency("tpot") == (None if expected is None else pytest.approx(expected))


def test_failed_requests_bring_no_tokens_and_no_times() -> None:
    failed = record(error="timeout", answer=None)
    run = Run("http://x/v1", "m", 1, 16, 0, 2.0, (record(), failed, record()))
    assert failed.latency("ttft") is None
    assert (run.failed, run.errors, run.answers) == (1, {"timeout": 1}, ["a", None, "a"])
    assert (run.tokens_out, run.throughput, run.requests_per_second) == (8, 4.0, 1.0)
    table = latency_table(run)["ttft"]
    assert table["count"] == 2
    assert table["p50"] == pytest.approx(200)
    assert table["p99"] is None
