"""Pictures and prompts take turns, and nobody waits for a turn that is over."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Event, Thread

import pytest

from slimdeploy.serve.engines.reading_turns import ReadingTurns

SECONDS = 10
"""In which what must happen happens."""
MOMENT = 0.05
"""In which what must not happen would."""


class Picture:
    """One that is encoded by a thread of its own, until `encoded` is called."""

    def __init__(self, turns: ReadingTurns) -> None:
        self._turns = turns
        self.began, self._done = Event(), Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._turns.picture():
            self.began.set()
            self._done.wait(SECONDS)

    def encoded(self) -> None:
        self._done.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


class Prompts:
    """What the loop's thread asks."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.turns = ReadingTurns(self.changed)

    def may_read(self, prompt: object) -> bool:
        with self.changed:
            return self.turns.has_prompt(prompt)

    def wait_until_asked(self) -> None:
        """By a picture."""
        end = time.monotonic() + SECONDS
        while not self.turns._picture_waits:
            assert time.monotonic() < end
            time.sleep(0.001)

    def offer(self) -> None:
        with self.changed:
            self.turns.offer()


@pytest.fixture
def prompts() -> Prompts:
    return Prompts()


@contextmanager
def encoding(turns: ReadingTurns) -> Iterator[Picture]:
    picture = Picture(turns)
    try:
        yield picture
    finally:
        picture.encoded()


def test_a_prompt_waits_for_the_picture_that_has_its_turn(prompts: Prompts) -> None:
    with encoding(prompts.turns) as picture:
        assert picture.began.wait(SECONDS)
        assert prompts.turns.is_encoding
        assert not prompts.may_read("first")
    assert prompts.may_read("first")


def test_a_picture_waits_until_all_of_a_prompt_is_read_and_comes_before_the_next(prompts: Prompts) -> None:
    assert prompts.may_read("first")
    with encoding(prompts.turns) as picture:
        prompts.wait_until_asked()
        assert not picture.began.wait(MOMENT)
        assert prompts.may_read("first"), "whose pieces follow each other"
        assert not prompts.may_read("second")
        assert picture.began.wait(SECONDS)
    assert prompts.may_read("second")


def test_a_picture_need_not_wait_where_no_prompt_is_left(prompts: Prompts) -> None:
    assert prompts.may_read("first")
    with encoding(prompts.turns) as picture:
        assert not prompts.may_read(None)
        assert picture.began.wait(SECONDS)


def test_prompts_and_pictures_alternate_as_long_as_both_wait(prompts: Prompts) -> None:
    with encoding(prompts.turns) as first:
        assert first.began.wait(SECONDS)
        assert not prompts.may_read("first")
    with encoding(prompts.turns) as second:
        prompts.wait_until_asked()
        assert not second.began.wait(MOMENT), "the prompt has waited for one picture"
        assert prompts.may_read("first")
        assert not prompts.may_read("second")
        assert second.began.wait(SECONDS)


def test_a_prompt_that_is_offered_comes_before_another_picture(prompts: Prompts) -> None:
    with encoding(prompts.turns) as first:
        assert first.began.wait(SECONDS)
        prompts.offer()
    with encoding(prompts.turns) as second:
        prompts.wait_until_asked()
        assert not second.began.wait(MOMENT)
        assert prompts.may_read("an earlier one")
        assert not prompts.may_read("first")
        assert second.began.wait(SECONDS)


def test_an_offer_that_comes_to_nothing_holds_nobody_up(prompts: Prompts) -> None:
    with encoding(prompts.turns) as first:
        assert first.began.wait(SECONDS)
        prompts.offer()
    with encoding(prompts.turns) as second:
        assert not prompts.may_read(None)
        assert second.began.wait(SECONDS)


def test_a_picture_that_fails_gives_its_turn_back(prompts: Prompts) -> None:
    with pytest.raises(RuntimeError), prompts.turns.picture():
        raise RuntimeError
    assert prompts.may_read("first")


def test_once_nobody_reads_prompts_pictures_wait_for_none(prompts: Prompts) -> None:
    assert prompts.may_read("first")
    with encoding(prompts.turns) as picture:
        with prompts.changed:
            prompts.turns.end()
        assert picture.began.wait(SECONDS)


def test_requests_are_expected_as_long_as_their_pictures_are_not_encoded(prompts: Prompts) -> None:
    with prompts.turns.expecting(2), prompts.turns.expecting(0), prompts.turns.expecting(1):
        assert prompts.turns.expected == 2
    assert prompts.turns.expected == 0
