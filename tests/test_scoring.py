"""The mean of what answers earn comes with its uncertainty."""

import math

import pytest

from slimdeploy.errors import DataError
from slimdeploy.samples import Sample
from slimdeploy.scoring import agreement, score


def sample(*answers: str, kind: str = "") -> Sample:
    return Sample(id="s", question="Which colour?", answers=answers, kind=kind)


def test_accuracy_has_the_binomial_standard_error_by_kind_too() -> None:
    samples = [sample("yes", kind="a")] * 3 + [sample("yes", kind="b")]
    accuracy = score(samples, ["yes", "no", None, "Yes."])
    assert (accuracy.value, accuracy.count) == (0.5, 4)
    assert accuracy.standard_error == pytest.approx(0.25)
    assert accuracy.by_kind["a"].value == pytest.approx(1 / 3)
    assert accuracy.by_kind["a"].standard_error == pytest.approx(math.sqrt(2) / 3 / math.sqrt(3))
    assert (accuracy.by_kind["b"].value, accuracy.by_kind["b"].standard_error) == (1.0, 0.0)


def test_partial_credit_has_the_standard_error_of_a_mean() -> None:
    partly = Sample("s", "What?", answers=("cat",) * 2 + ("dog",) * 8, metric="vqa")
    accuracy = score([partly, partly, partly], ["cat", "dog", "dog"])
    earned = [0.6, 1.0, 1.0]
    mean = sum(earned) / 3
    assert accuracy.value == pytest.approx(mean)
    assert accuracy.standard_error == pytest.approx(math.sqrt(sum((each - mean) ** 2 for each in earned) / 3 / 3))


def test_samples_without_a_kind_have_no_share_of_their_own() -> None:
    assert score([sample("yes")], ["yes"]).by_kind == {}


def test_a_sample_without_answer_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="sample 's' has no answer, but accuracy needs one"):
        score([sample("yes"), sample()], ["yes", "yes"])


def test_agreement_is_letter_by_letter_and_a_failure_agrees_with_nothing() -> None:
    assert agreement(["a", "B", "c", None], ["a", "b", "c", None]) == 0.5
