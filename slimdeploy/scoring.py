"""Accuracy, and how sure it is. Knows no model and no endpoint, only texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from .metrics import credit
from .samples import Sample, require_answers


@dataclass(frozen=True)
class Accuracy:
    """Mean credit of the answers, 0 to 1: the share of right ones where an answer is right or wrong.

    standard_error: of that mean, the standard deviation over sqrt(n), which is sqrt(p (1 - p) / n) for a share.
    by_kind: the same for every type of question; empty where samples name none.
    """

    value: float
    standard_error: float
    count: int
    by_kind: Mapping[str, "Accuracy"] = field(default_factory=dict)


def score(samples: Sequence[Sample], answers: Sequence[str | None]) -> Accuracy:
    """Accuracy of `answers`, one per sample in order, each by its sample's metric. None counts as wrong.

    Raises DataError when a sample has no answer to compare with.
    """
    assert samples, "an accuracy needs samples"
    require_answers(samples, "accuracy")
    earned = [credit(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    kinds = sorted({sample.kind for sample in samples} - {""})
    by_kind = {
        kind: _mean([each for sample, each in zip(samples, earned, strict=True) if sample.kind == kind])
        for kind in kinds
    }
    whole = _mean(earned)
    return Accuracy(whole.value, whole.standard_error, whole.count, by_kind)


def agreement(first: Sequence[str | None], second: Sequence[str | None]) -> float:
    """Share of equal answers, 0 to 1, compared letter by letter but for outer blanks. No answer agrees with nothing."""
    assert first, "an agreement needs answers"
    pairs = zip(first, second, strict=True)
    return sum(a is not None and b is not None and a.strip() == b.strip() for a, b in pairs) / len(first)


def _mean(earned: Sequence[float]) -> Accuracy:
    return Accuracy(fmean(earned), pstdev(earned) / math.sqrt(len(earned)), len(earned))
