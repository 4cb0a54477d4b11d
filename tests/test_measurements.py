"""Percentiles are numpy's; a failed request is infinitely slow; tokens and times follow vLLM's definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.measurements import LATENCY_METRICS, Distribution, RequestRecord, Run, latency_table, remarks

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


def test_an_empty_answer_has_an_e2e_only_and_that_is_said() -> None:
    empty = record(first_token=None, tokens_out=1, answer="")
    assert [empty.latency(metric) for metric in LATENCY_METRICS] == [None, None, pytest.approx(500)]
    run = Run("http://x/v1", "m", 1, 16, 0, 2.0, (record(), empty, record(tokens_out=1)))
    assert [latency_table(run)[metric]["count"] for metric in LATENCY_METRICS] == [2, 1, 3]
    assert remarks(run) == [
        "1 answers were empty: they count in E2E, and are left out of TTFT and TPOT.",
        "1 answers have one token, and are left out of TPOT.",
    ]


def test_an_answer_without_any_choice_has_no_latency_and_that_is_said() -> None:
    nothing = record(first_token=None, last_token=None, tokens_out=0, answer="")
    assert [nothing.latency(metric) for metric in LATENCY_METRICS] == [None] * 3
    run = Run("http://x/v1", "m", 1, 16, 0, 2.0, (nothing,))
    assert "1 answers came without a choice, and are left out of E2E as well." in remarks(run)


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
