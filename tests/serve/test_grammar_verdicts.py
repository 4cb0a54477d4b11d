"""What came of trying a grammar is known for the next who asks: success until others follow, a refusal for a while."""

import pytest

from slimdeploy.serve.grammar_verdicts import Verdicts


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Trials:
    """Wrong is what says so."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def __call__(self, written: str) -> str:
        self.tried.append(written)
        if written == "broken":
            raise RuntimeError
        return "too slow" if "wrong" in written else ""


def test_a_grammar_is_tried_once_whatever_came_of_it() -> None:
    verdicts = Verdicts(trials := Trials())
    for written, fault in 3 * [("right", ""), ("wrong", "too slow")]:
        assert verdicts.of(written) == fault
        assert verdicts.known(written) == fault
    assert trials.tried == ["right", "wrong"]


def test_a_refusal_is_tried_again_after_ten_minutes() -> None:
    verdicts = Verdicts(trials := Trials(), clock := Clock())
    for seconds, times in ((0, 1), (599, 1), (600, 2)):
        clock.now = seconds
        assert (verdicts.of("right"), verdicts.of("wrong")) == ("", "too slow")
        assert trials.tried.count("wrong") == times
    assert trials.tried.count("right") == 1


def test_of_many_the_last_that_were_asked_for_are_known() -> None:
    verdicts = Verdicts(trials := Trials())
    verdicts.of("asked for")
    for number in range(1000):
        verdicts.of(f"wrong {number}")
        assert verdicts.of("asked for") == ""
    assert trials.tried.count("asked for") == 1
    known = [number for number in range(1000) if verdicts.known(f"wrong {number}") is not None]
    assert known == list(range(1000 - len(known), 1000))
    assert len(known) == 255


def test_a_trial_that_fails_by_itself_is_no_verdict() -> None:
    verdicts = Verdicts(trials := Trials())
    for times in range(1, 3):
        with pytest.raises(RuntimeError):
            verdicts.of("broken")
        assert len(trials.tried) == times
    assert verdicts.known("broken") is None
