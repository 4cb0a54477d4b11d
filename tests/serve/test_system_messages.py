"""A conversation's system messages are all in its prompt, or it is refused; many of them are looked for in one pass."""

import time
from pathlib import Path

import pytest

from slimdeploy.serve.engine import Message, RequestError
from slimdeploy.serve.prompts import Prompts
from slimdeploy.serve.text import Text


def prompts(checkpoint: Path, passed_over: str = "") -> Prompts:
    """Written one behind the other, less one that the template has no place for."""
    return Prompts(
        Text(checkpoint),
        "<image>",
        lambda messages: "\n".join(str(part) for m in messages for part in m.parts if part != passed_over),
    )


def test_each_is_found_in_its_place(checkpoint: Path) -> None:
    said = tuple(Message("system", (f" number {number} ",)) for number in range(20_000))
    start = time.perf_counter()
    assert prompts(checkpoint).render(said)
    assert time.perf_counter() - start < 10  # half a second; a minute where each search begins at the beginning


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_that_the_template_passes_over_is_named(checkpoint: Path, number: int) -> None:
    said = tuple(Message("system", (f"number {each}",)) for each in range(3))
    with pytest.raises(RequestError, match="no place for a system message") as caught:
        prompts(checkpoint, f"number {number}").render(said)
    assert caught.value.param == f"messages[{number}]"
