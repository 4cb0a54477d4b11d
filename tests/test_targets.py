"""Each metric can be met, missed, or impossible to measure, which is missed with a reason."""

import pytest

from slimdeploy.config import Target
from slimdeploy.measurements import RequestRecord, Run
from slimdeploy.scoring import Accuracy
from slimdeploy.targets import Measured, TargetResult, judge


def run(failed: int = 0, tokens: int = 11) -> Run:
    """Ten requests of TTFT 100 ms, TPOT 20 ms, E2E 300 ms, one after the other."""
    good = [RequestRecord(f"s{i}", i, i + 0.1, i + 0.3, 5, tokens, answer="a") for i in range(10 - failed)]
    bad = [RequestRecord(f"f{i}", i, error="HTTP 500") for i in range(failed)]
    return Run("http://x/v1", "m", 1, 16, 0, 11.0, (*good, *bad))


MEASURED = Measured(run(), Accuracy(0.90, 0.01, 10), Accuracy(0.95, 0.01, 10), 8_000_000)


def verdict(target: Target, measured: Measured = MEASURED) -> TargetResult:
    (result,) = judge([target], measured)
    return result


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(metric="ttft", percentile=95, max_ms=100.1), True),
        (Target(metric="ttft", percentile=95, max_ms=99.9), False),
        (Target(metric="tpot", percentile=50, max_ms=20.1), True),
        (Target(metric="tpot", percentile=50, max_ms=19.9), False),
        (Target(metric="e2e", percentile=99, max_ms=300.1), True),
        (Target(metric="e2e", percentile=99, max_ms=299.9), False),
        (Target(metric="throughput", min=10.0), True),
        (Target(metric="throughput", min=10.1), False),
        (Target(metric="accuracy", min=0.9), True),
        (Target(metric="accuracy", min=0.91), False),
        (Target(metric="accuracy_retention", min=0.94), True),
        (Target(metric="accuracy_retention", min=0.95), False),
        (Target(metric="artifact_mb", max=8.0), True),
        (Target(metric="artifact_mb", max=7.9), False),
    ],
)
def test_met_and_missed(target: Target, met: bool) -> None:
    result = verdict(target)
    assert result.measured is not None
    assert (result.met, result.goal, result.is_upper_bound) == (met, target.goal, target.is_upper_bound)


@pytest.mark.parametrize(
    ("target", "measured", "reason"),
    [
        (Target(metric="ttft", percentile=95, max_ms=1e9), Measured(), "no endpoint was measured"),
        (Target(metric="ttft", percentile=95, max_ms=1e9), Measured(run(failed=10)), "all requests failed"),
        (Target(metric="ttft", percentile=95, max_ms=1e9), Measured(run(failed=1)), "1 of 10 requests failed"),
        (Target(metric="tpot", percentile=95, max_ms=1e9), Measured(run(tokens=1)), "no answer was long enough"),
        (Target(metric="throughput", min=0), Measured(), "no endpoint was measured"),
        (Target(metric="accuracy", min=0), Measured(run()), "no answers were scored"),
        (Target(metric="accuracy_retention", min=0), Measured(run()), "no answers were scored"),
        (
            Target(metric="accuracy_retention", min=0),
            Measured(run(), Accuracy(0.9, 0.01, 10)),
            "the dense model's accuracy is not known",
        ),
        (
            Target(metric="accuracy_retention", min=0),
            Measured(run(), Accuracy(0.9, 0.01, 10), Accuracy(0, 0, 10)),
            "the dense model has no right answer",
        ),
        (Target(metric="artifact_mb", max=1e9), Measured(run()), "no artifact was given"),
    ],
)
def test_what_was_not_measured_is_missed_with_a_reason(target: Target, measured: Measured, reason: str) -> None:
    result = verdict(target, measured)
    assert (result.measured, result.met, result.measured_text) == (None, False, "not measured")
    assert reason in result.reason


def test_failures_below_the_percentile_do_not_hide_it() -> None:
    result = verdict(Target(metric="ttft", percentile=50, max_ms=101), Measured(run(failed=2)))
    assert result.met


def test_retention_over_different_samples_says_so() -> None:
    measured = Measured(run(), Accuracy(0.9, 0.01, 10), Accuracy(0.95, 0.01, 2000))
    assert (
        verdict(Target(metric="accuracy_retention", min=0.9), measured).reason
        == "on 10 samples, the dense model on 2000"
    )


def test_verdicts_read_as_words() -> None:
    latency = verdict(Target(metric="ttft", percentile=99.5, max_ms=250))
    share = verdict(Target(metric="accuracy_retention", min=0.97))
    assert (latency.name, latency.goal_text, latency.measured_text) == ("TTFT p99.5", "at most 250 ms", "100 ms")
    assert (share.name, share.goal_text, share.measured_text) == ("Accuracy kept", "at least 97.0%", "94.7%")
