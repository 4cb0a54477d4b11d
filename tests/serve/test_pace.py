"""A prompt is read as fast as those whose answers go on can bear."""

import pytest

from slimdeploy.serve.engines.pace import LARGEST_PIECE, Pace


def seconds(answers: int, piece: int) -> float:
    """A machine that takes 20 ms for its weights, and 1 for every token."""
    return 0.020 + 0.001 * (answers + piece)


def after(steps: int, answers: int, pace: Pace, prompts: int = 1) -> list[int]:
    """The sizes of pieces in steps that all have a prompt to read."""
    sizes = []
    for _ in range(steps):
        sizes.append(pace.piece(answers, prompts))
        pace.took(seconds(answers, sizes[-1]), answers, sizes[-1])
    return sizes


def test_where_nobody_waits_large_pieces_are_read_of_equal_size() -> None:
    assert Pace().piece(0, unread=617) == 617
    assert Pace().piece(0, unread=LARGEST_PIECE + 2) == LARGEST_PIECE // 2 + 1


def test_the_first_step_beside_answers_shows_how_long_they_usually_take() -> None:
    first, second = after(2, 3, Pace())
    assert (first, second) == (0, 8)


@pytest.mark.parametrize("answers", [1, 4, 8])
def test_steps_take_twice_their_usual_time_on_average_and_no_more(answers: int) -> None:
    sizes = [size for size in after(200, answers, Pace())[100:] if size]
    usual = seconds(answers, 0)
    taken = [seconds(answers, size) / usual for size in sizes]
    assert sum(taken) / len(taken) == pytest.approx(2.0, abs=0.1)
    assert max(taken) < 2.3


def test_each_prompt_that_waits_has_as_much_time_as_all_answers_together() -> None:
    pace, usual = Pace(), seconds(2, 0)
    many = [seconds(2, size) / usual for size in after(200, 2, pace, prompts=3)[100:] if size]
    assert sum(many) / len(many) == pytest.approx(4.0, abs=0.2)
    few = [seconds(2, size) / usual for size in after(200, 2, pace)[40:] if size]
    assert sum(few) / len(few) == pytest.approx(2.0, abs=0.1), "and once they are read answers are as fast as ever"


def test_ends_of_prompts_say_nothing_of_larger_pieces() -> None:
    pace = Pace()
    pace.took(seconds(2, 0), 2, 0)
    for _ in range(600):
        size = pace.piece(2)
        pace.took(seconds(2, min(size, 6)), 2, min(size, 6))
    assert pace.piece(2) <= 9


def test_short_prompts_that_take_too_long_make_pieces_smaller() -> None:
    pace = Pace()
    after(100, 2, pace, prompts=7)
    for _ in range(60):
        size = min(pace.piece(2, prompts=7), 100)
        pace.took(seconds(2, 10 * size) if size else seconds(2, 0), 2, size)
    size = pace.piece(2, prompts=7)
    assert seconds(2, 10 * size) < 9 * seconds(2, 0)


def test_how_long_steps_usually_take_is_seen_again_and_again() -> None:
    """The first one was held up; and then answers grow longer."""
    pace = Pace()
    pace.took(5 * seconds(2, 0), 2, 0)
    sizes = after(100, 2, pace)
    assert sizes.count(0) == 3
    assert seconds(2, max(sizes[-20:])) < 2.3 * seconds(2, 0)


def test_where_a_piece_reads_all_weights_for_itself_it_is_worth_it() -> None:
    pace = Pace(fewest=32)
    pace.took(0.021, 1, 0)
    for _ in range(50):
        piece = pace.piece(1)
        pace.took(0.021 + (0.020 + 0.001 * piece if piece else 0), 1, piece)
    assert max(pace.piece(1), 32) == 32


def test_a_machine_that_is_busy_with_other_things_now_and_then_still_reads() -> None:
    """Every fifth step takes three times as long, whatever is in it."""
    pace, read = Pace(), 0
    pace.took(seconds(7, 0), 7, 0)
    for step in range(300):
        piece = pace.piece(7)
        pace.took(seconds(7, piece) * (3 if step % 5 == 0 else 1), 7, piece)
        read += piece
    assert read > 1000


def test_a_machine_on_which_every_piece_takes_long_reads_a_token_at_a_time() -> None:
    pace = Pace()
    pace.took(0.01, 1, 0)
    for _ in range(30):
        pace.took(0.05, 1, pace.piece(1))
    assert pace.piece(1) == 1


def test_each_number_of_answers_has_its_own_usual_time() -> None:
    pace = Pace()
    pace.took(0.01, 1, 0)
    assert pace.piece(1) > 0
    assert pace.piece(2) == 0


def test_while_a_picture_is_encoded_answers_wait_for_those_behind_it() -> None:
    pace = Pace()
    assert pace.pause(2, prompts=3) == 0, "nothing is known yet"
    pace.took(0.02, 2, 0)
    assert pace.pause(2, prompts=1) == 0, "they have half of the cores as it is"
    assert pace.pause(2, prompts=3) == pytest.approx(0.04)
    assert pace.pause(3, prompts=3) == pytest.approx(0.04), "as long as a step with nearly as many answers takes"
