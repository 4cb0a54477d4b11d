"""Targets against what was measured: met or missed, and why. Knows no file and no endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from .config import Metric, Target
from .measurements import LatencyMetric, Run
from .scoring import Accuracy

UNITS: dict[Metric, str] = {
    "ttft": "ms",
    "tpot": "ms",
    "e2e": "ms",
    "throughput": "tokens/s",
    "accuracy": "%",
    "accuracy_retention": "%",
    "artifact_mb": "MB",
}
NAMES: dict[Metric, str] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2e": "E2E",
    "throughput": "Throughput",
    "accuracy": "Accuracy",
    "accuracy_retention": "Accuracy kept",
    "artifact_mb": "Artifact size",
}


@dataclass(frozen=True)
class Measured:
    """What targets are held against; None where it was not measured.

    accuracy: through the endpoint, on the run's samples. dense: of the dense model. artifact_bytes: all files together.
    """

    run: Run | None = None
    accuracy: Accuracy | None = None
    dense: Accuracy | None = None
    artifact_bytes: int | None = None


@dataclass(frozen=True)
class TargetResult:
    """A target's verdict. goal, measured: in the metric's unit, which is ms, tokens/s, a share (0 to 1) or MB (10^6).

    measured: None when there is nothing to compare; the target is then missed and `reason` says why.
    """

    metric: Metric
    percentile: float | None
    goal: float
    is_upper_bound: bool
    measured: float | None
    met: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """For people: "TTFT p95"."""
        return NAMES[self.metric] + ("" if self.percentile is None else f" p{self.percentile:g}")

    @property
    def goal_text(self) -> str:
        return f"{'at most' if self.is_upper_bound else 'at least'} {in_words(self.metric, self.goal)}"

    @property
    def measured_text(self) -> str:
        return "not measured" if self.measured is None else in_words(self.metric, self.measured)


def in_words(metric: Metric, value: float) -> str:
    """The value with its unit, to the digits that matter: "12.3 ms", "97.1%"."""
    unit = UNITS[metric]
    if unit == "%":
        return f"{100 * value:.1f}%"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def judge(targets: Sequence[Target], measured: Measured) -> list[TargetResult]:
    """One verdict per target. What could not be measured is missed, with the reason in words.

    A failed request counts as infinitely slow, as a wrong answer, and brings no tokens.
    """
    return [_judge_one(target, *_value(target, measured)) for target in targets]


def _judge_one(target: Target, value: float | None, reason: str) -> TargetResult:
    met = value is not None and (value <= target.goal if target.is_upper_bound else value >= target.goal)
    return TargetResult(target.metric, target.percentile, target.goal, target.is_upper_bound, value, met, reason)


def _value(target: Target, measured: Measured) -> tuple[float | None, str]:
    """The figure that a target is about, or None and the reason why there is none."""
    match target.metric:
        case "ttft" | "tpot" | "e2e":
            assert target.percentile is not None
            return _latency(measured.run, target.metric, target.percentile)
        case "throughput":
            return (measured.run.throughput, "") if measured.run else (None, "no endpoint was measured")
        case "accuracy":
            return (measured.accuracy.value, "") if measured.accuracy else (None, "no answers were scored")
        case "accuracy_retention":
            return _retention(measured.accuracy, measured.dense)
        case "artifact_mb":
            size = measured.artifact_bytes
            return (None, "no artifact was given, only an endpoint") if size is None else (size / 1e6, "")
        case _:
            assert_never(target.metric)


def _latency(run: Run | None, metric: LatencyMetric, percentile: float) -> tuple[float | None, str]:
    if run is None:
        return None, "no endpoint was measured"
    distribution = run.distribution(metric)
    if not distribution.values:
        return None, "all requests failed" if run.failed == len(run.requests) else "no answer was long enough for it"
    value = distribution.percentile(percentile)
    if value is None:
        return None, f"{run.failed} of {len(run.requests)} requests failed, so this percentile has no end"
    return value, ""


def _retention(accuracy: Accuracy | None, dense: Accuracy | None) -> tuple[float | None, str]:
    if accuracy is None:
        return None, "no answers were scored"
    if dense is None:
        return None, "the dense model's accuracy is not known"
    if dense.value == 0:
        return None, "the dense model has no right answer"
    note = "" if accuracy.count == dense.count else f"on {accuracy.count} samples, the dense model on {dense.count}"
    return accuracy.value / dense.value, note
