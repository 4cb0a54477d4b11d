"""A journal gives back what was noted in it, and only that."""

from pathlib import Path

import torch

from slimdeploy.search import Journal


def never() -> float:
    raise AssertionError("this was judged before")


def test_a_verdict_is_judged_once_and_read_by_later_journals(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.verdict("a", lambda: 0.1 + 0.2) == 0.1 + 0.2
    assert journal.verdict("a", never) == 0.1 + 0.2
    assert journal.verdict("b", lambda: float("inf")) == float("inf")
    later = Journal(tmp_path)
    assert (later.verdict("a", never), later.verdict("b", never)) == (0.1 + 0.2, float("inf"))
    assert later.verdict("c", lambda: 3.0) == 3.0


def test_a_line_that_a_kill_cut_off_is_judged_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.verdict("a", lambda: 1.0)
    journal.verdict("b", lambda: 2.0)
    file = tmp_path / "verdicts.jsonl"
    file.write_text(file.read_text()[:-7])
    again = Journal(tmp_path)
    assert again.verdict("a", never) == 1.0
    assert again.verdict("b", lambda: 5.0) == 5.0
    assert Journal(tmp_path).verdict("b", never) == 5.0


def test_tensors_are_made_once_and_none_are_remembered_too(tmp_path: Path) -> None:
    made = {"w": torch.randn(3, 4).t()}
    assert torch.equal(Journal(tmp_path).tensors("one", lambda: made)["w"], made["w"])
    assert torch.equal(Journal(tmp_path).tensors("one", dict)["w"], made["w"])
    assert Journal(tmp_path).tensors("none", dict) == {}
    assert Journal(tmp_path).tensors("none", lambda: made) == {}
