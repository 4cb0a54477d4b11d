"""Where there is no terminal, progress is plain lines: few of them, each with the time left."""

import io

from rich.console import Console

from slimdeploy.progress import Progress


def test_without_a_terminal_a_finished_step_is_one_plain_line() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, width=200)) as progress:
        assert list(progress.track("abc", "counting", total=3)) == ["a", "b", "c"]
    (line,) = output.getvalue().splitlines()
    assert line.startswith("counting: 3/3, ")
    assert "\x1b" not in line


def test_a_note_says_how_the_step_stands() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, width=200)) as progress:
        progress.bar("training", total=1).advance("loss 0.31")
    assert output.getvalue().rstrip().endswith("s left; loss 0.31")


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, force_terminal=True, width=120)) as progress:
        list(progress.track(range(3), "counting", total=3))
    assert "3/3" in output.getvalue()


def test_silence_is_silent() -> None:
    with Progress.silent() as progress:
        progress.say("nothing")
        assert list(progress.track([1], "counting", total=1)) == [1]
