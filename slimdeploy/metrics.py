"""How much credit an answer earns, 0 to 1, by the metric of its sample. Knows no model and no endpoint, only texts."""

import re
import string
from collections.abc import Sequence
from typing import assert_never

from .samples import Sample

_TOLERANCE = 0.05
_ENOUGH_HUMANS = 3
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}


def credit(sample: Sample, answer: str | None) -> float:
    """What `answer` earns; None, no answer at all, earns nothing."""
    if answer is None:
        return 0.0
    match sample.metric:
        case "exact_match":
            return float(normalized(answer) in map(normalized, sample.answers))
        case "letter":
            return float(chosen(answer, sample.choices) in {chosen(right, sample.choices) for right in sample.answers})
        case "vqa":
            return vqa_accuracy(answer, sample.answers)
        case "relaxed":
            return float(any(nearly_equal(answer, right) for right in sample.answers))
        case _:
            assert_never(sample.metric)


def normalized(answer: str) -> str:
    """The text that is compared: case, surrounding blanks and one final full stop do not count."""
    return answer.strip().casefold().removesuffix(".").rstrip()


def chosen(answer: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an answer names, by its text or by its letter: "B", "(b)", "B. red", "The answer is B."."""
    texts = [normalized(choice) for choice in choices]
    if (text := normalized(answer)) in texts:
        return texts.index(text)
    # A capital that a sentence merely begins with ("A red ball") is no letter of a choice.
    found = (
        re.fullmatch(r"\W*([A-Za-z])\W*", answer)
        or re.match(r"\W*([A-Z])[.):,]", answer)
        or re.search(r"[Aa]nswer(?: is|:)\s*\W?([A-Z])\b", answer)
    )
    place = string.ascii_uppercase.index(found[1].upper()) if found else len(choices)
    return place if place < len(choices) else None


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """min(1, equal human answers / 3), averaged over leaving out one human each (VQA; Antol et al. 2015).

    Texts are compared without articles and punctuation, number words as digits. With at most three human answers any of
    them is right: nothing could be left out.
    """
    given, others = _plain(answer), [_plain(human) for human in humans]
    equal = others.count(given)
    if len(others) <= _ENOUGH_HUMANS:
        return float(equal > 0)
    agreeing = (equal - (left_out == given) for left_out in others)
    return sum(min(1.0, count / _ENOUGH_HUMANS) for count in agreeing) / len(others)


def nearly_equal(answer: str, right: str) -> bool:
    """Numbers within 5% of the right one, other texts by exact match (ChartQA; Masry et al. 2022)."""
    given, exact = _number(answer), _number(right)
    if given is None or exact is None:
        return normalized(answer) == normalized(right)
    return abs(given - exact) <= _TOLERANCE * abs(exact)


def _number(text: str) -> float | None:
    """The number that a text is, whatever its currency or percent sign."""
    plain = normalized(text).strip("$€£% ").replace(",", "")
    return float(plain) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", plain) else None


def _plain(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d)", "", text.casefold())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    words = re.sub(r"[^\w.':]|_", " ", text).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)
