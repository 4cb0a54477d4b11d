"""A journal gives back what was noted in it, and only that."""

from pathlib import Path

import torch

from slimdeploy.search.journal import Journal


def test_what_was_noted_is_recalled_by_later_journals(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.note("a", {"losses": [[0.1 + 0.2, float("inf")]], "seconds": 0.0})
    assert journal.recall("b") is None
    journal.note("b", 0.0)
    for known in (journal, Journal(tmp_path)):
        assert known.recall("a") == {"losses": [[0.1 + 0.2, float("inf")]], "seconds": 0.0}
        assert known.recall("b") == 0.0
        assert known.recall("c") is None


def test_a_line_that_a_kill_cut_off_is_found_out_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.note("a", 1.0)
    journal.note("b", 2.0)
    file = tmp_path / "notes.jsonl"
    file.write_text(file.read_text()[:-7])
    again = Journal(tmp_path)
    assert (again.recall("a"), again.recall("b")) == (1.0, None)
    again.note("b", 5.0)
    assert Journal(tmp_path).recall("b") == 5.0


def test_tensors_are_made_once_and_none_are_remembered_too(tmp_path: Path) -> None:
    made = {"w": torch.randn(3, 4).t()}
    assert torch.equal(Journal(tmp_path).tensors("one", lambda: made)["w"], made["w"])
    assert torch.equal(Journal(tmp_path).tensors("one", dict)["w"], made["w"])
    assert Journal(tmp_path).tensors("none", dict) == {}
    assert Journal(tmp_path).tensors("none", lambda: made) == {}
