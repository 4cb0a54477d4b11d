"""Right or wrong, and how sure the share of right answers is. Knows no model and no endpoint, only texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .samples import Sample, require_answers


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers, 0 to 1.

    standard_error: of that share, sqrt(p (1 - p) / n); it is 0 where all or none are right.
    by_kind: the same for every type of question; empty where samples name none.
    """

    value: float
    standard_error: float
    count: int
    by_kind: Mapping[str, "Accuracy"] = field(default_factory=dict)


def normalized(answer: str) -> str:
    """The text that is compared: case, surrounding blanks and one final full stop do not count."""
    return answer.strip().casefold().removesuffix(".").rstrip()


def is_right(sample: Sample, answer: str | None) -> bool:
    """Whether `answer` equals one of the sample's; None, no answer at all, is wrong."""
    return answer is not None and normalized(answer) in map(normalized, sample.answers)


def score(samples: Sequence[Sample], answers: Sequence[str | None]) -> Accuracy:
    """Exact-match accuracy of `answers`, one per sample in order. None counts as wrong.

    Raises DataError when a sample has no answer to compare with.
    """
    assert samples, "an accuracy needs samples"
    require_answers(samples, "accuracy")
    rights = [is_right(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    kinds = sorted({sample.kind for sample in samples} - {""})
    by_kind = {
        kind: _share([right for sample, right in zip(samples, rights, strict=True) if sample.kind == kind])
        for kind in kinds
    }
    whole = _share(rights)
    return Accuracy(whole.value, whole.standard_error, whole.count, by_kind)


def agreement(first: Sequence[str | None], second: Sequence[str | None]) -> float:
    """Share of equal answers, 0 to 1, compared letter by letter but for outer blanks. No answer agrees with nothing."""
    assert first, "an agreement needs answers"
    pairs = zip(first, second, strict=True)
    return sum(a is not None and b is not None and a.strip() == b.strip() for a, b in pairs) / len(first)


def _share(rights: Sequence[bool]) -> Accuracy:
    share = sum(rights) / len(rights)
    return Accuracy(share, math.sqrt(share * (1 - share) / len(rights)), len(rights))
