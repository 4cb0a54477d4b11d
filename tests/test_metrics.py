"""Each metric earns what its paper says, and what people would expect of an answer that is written otherwise."""

import pytest

from slimdeploy.metrics import chosen, credit, vqa_accuracy
from slimdeploy.samples import AnswerMetric, Sample

COLOURS = ("red", "a blue one", "Green")


def earns(metric: AnswerMetric, answer: str | None, *right: str, choices: tuple[str, ...] = ()) -> float:
    return credit(Sample("s", "Which?", answers=right, choices=choices, metric=metric), answer)


@pytest.mark.parametrize("answer", ["red", " Red ", "RED.", "red .", "\nred.\n"])
def test_case_blanks_and_one_full_stop_do_not_count(answer: str) -> None:
    assert earns("exact_match", answer, "Red") == 1


@pytest.mark.parametrize("answer", ["", "reddish", "red..", "a red", "blue", None])
def test_anything_else_is_wrong(answer: str | None) -> None:
    assert earns("exact_match", answer, "red") == 0


def test_any_of_the_answers_is_right() -> None:
    assert earns("exact_match", "2.", "two", "2") == 1


@pytest.mark.parametrize(
    "answer", ["B", "b", "(b)", "B.", "B. something", "B) a blue one", "a Blue one.", "The answer is B.", "Answer: (B)"]
)
def test_a_choice_is_named_by_its_text_or_its_letter(answer: str) -> None:
    assert chosen(answer, COLOURS) == 1
    assert earns("letter", answer, "a blue one", choices=COLOURS) == 1
    assert earns("letter", answer, "B", choices=COLOURS) == 1


@pytest.mark.parametrize("answer", ["A", "D", "", "A blue ball", "Blue", "blue, B", "I think so"])
def test_other_letters_and_sentences_name_another_choice_or_none(answer: str) -> None:
    assert chosen(answer, COLOURS) != 1
    assert earns("letter", answer, "B", choices=COLOURS) == 0


def test_vqa_gives_the_share_of_humans_left_out_that_agree() -> None:
    # Two of ten said "cat". Leaving out one of the two leaves 1/3, leaving out any other 2/3.
    humans = ["cat"] * 2 + ["dog"] * 8
    assert vqa_accuracy("cat", humans) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("dog", humans) == 1
    assert vqa_accuracy("cow", humans) == 0


@pytest.mark.parametrize("answer", ["Two cats!", "2 cats", "the two cats.", " TWO, cats"])
def test_vqa_ignores_articles_punctuation_and_how_numbers_are_written(answer: str) -> None:
    assert earns("vqa", answer, *["2 cats"] * 10) == 1


def test_vqa_keeps_the_point_of_a_number() -> None:
    assert earns("vqa", "3.5", *["3.5."] * 4) == 1
    assert earns("vqa", "35", *["3.5"] * 4) == 0
    assert earns("vqa", "1,000", *["1000"] * 4) == 1


def test_vqa_with_few_humans_takes_any_of_them() -> None:
    assert earns("vqa", "cat", "dog", "Cat", "cow") == 1
    assert earns("vqa", "hen", "dog", "Cat", "cow") == 0


@pytest.mark.parametrize(
    ("answer", "right", "earned"),
    [
        ("105", "100", 1),
        ("106", "100", 0),
        ("95%", "100%", 1),
        ("-95", "-100", 1),
        ("$1,050", "1000", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("rose", "Rose.", 1),
        ("12 or 13", "12", 0),
        ("nan", "12", 0),
    ],
)
def test_relaxed_numbers_may_be_five_percent_off(answer: str, right: str, earned: float) -> None:
    assert earns("relaxed", answer, right) == earned


@pytest.mark.parametrize("metric", ["exact_match", "letter", "vqa", "relaxed"])
def test_no_answer_earns_nothing(metric: AnswerMetric) -> None:
    assert earns(metric, None, "A", choices=("A", "B")) == 0
