"""Answers are compared as people would, and the share of right ones comes with its uncertainty."""

import math

import pytest

from slimdeploy.errors import DataError
from slimdeploy.samples import Sample
from slimdeploy.scoring import agreement, is_right, score


def sample(*answers: str, kind: str = "") -> Sample:
    return Sample(id="s", question="Which colour?", answers=answers, kind=kind)


@pytest.mark.parametrize("answer", ["red", " Red ", "RED.", "red .", "\nred.\n"])
def test_case_blanks_and_one_full_stop_do_not_count(answer: str) -> None:
    assert is_right(sample("Red"), answer)


@pytest.mark.parametrize("answer", ["", "reddish", "red..", "a red", "blue", None])
def test_anything_else_is_wrong(answer: str | None) -> None:
    assert not is_right(sample("red"), answer)


def test_any_of_the_answers_is_right() -> None:
    assert is_right(sample("two", "2"), "2.")


def test_accuracy_has_the_binomial_standard_error_by_kind_too() -> None:
    samples = [sample("yes", kind="a")] * 3 + [sample("yes", kind="b")]
    accuracy = score(samples, ["yes", "no", None, "Yes."])
    assert (accuracy.value, accuracy.count) == (0.5, 4)
    assert accuracy.standard_error == pytest.approx(0.25)
    assert accuracy.by_kind["a"].value == pytest.approx(1 / 3)
    assert accuracy.by_kind["a"].standard_error == pytest.approx(math.sqrt(2) / 3 / math.sqrt(3))
    assert (accuracy.by_kind["b"].value, accuracy.by_kind["b"].standard_error) == (1.0, 0.0)


def test_samples_without_a_kind_have_no_share_of_their_own() -> None:
    assert score([sample("yes")], ["yes"]).by_kind == {}


def test_a_sample_without_answer_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="sample 's' has no answer, but accuracy needs one"):
        score([sample("yes"), sample()], ["yes", "yes"])


def test_agreement_is_letter_by_letter_and_a_failure_agrees_with_nothing() -> None:
    assert agreement(["a", "B", "c", None], ["a", "b", "c", None]) == 0.5
