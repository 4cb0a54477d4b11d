"""A prompt is read as fast as those whose answers go on can bear."""

import pytest

from slimdeploy.serve.engines.pace import Pace


def seconds(answers: int, piece: int) -> float:
    """A machine that takes 20 ms for its weights, and 1 for every token."""
    return 0.020 + 0.001 * (answers + piece)


def after(steps: int, answers: int, pace: Pace) -> list[int]:
    """The sizes of pieces in steps that all have a prompt to read."""
    sizes = []
    for _ in range(steps):
        sizes.append(pace.piece(answers))
        pace.took(seconds(answers, sizes[-1]), answers, sizes[-1])
    return sizes


def test_where_nobody_waits_large_pieces_are_read() -> None:
    assert Pace().piece(0) > 256


def test_the_first_step_beside_answers_shows_how_long_they_usually_take() -> None:
    first, second = after(2, 3, Pace())
    assert (first, second) == (0, 8)


@pytest.mark.parametrize("answers", [1, 4, 8])
def test_a_step_takes_twice_its_usual_time_and_no_more(answers: int) -> None:
    sizes = after(200, answers, Pace())[100:]
    usual = seconds(answers, 0)
    taken = [seconds(answers, size) / usual for size in sizes]
    assert sum(taken) / len(taken) == pytest.approx(1.9, abs=0.1)
    assert max(taken) < 2.1


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
