"""The demo's benchmark leaves no figure out without a word."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from slimdeploy.config_file import load_config
from slimdeploy.progress import Progress

ROOT = Path(__file__).parents[2]


def test_where_there_are_no_kernels_a_note_stands_for_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    import demo

    monkeypatch.setattr(demo, "missing_operators", lambda: "install g++ [and cmake]")
    console = Console(file=io.StringIO(), width=200)
    config = load_config(ROOT / "deploy.toml")
    with Progress(console) as progress:
        assert not list(demo.with_and_without_operators(config, progress, console))
    assert isinstance(console.file, io.StringIO)
    assert "without our operators are compared with nothing: install g++ [and cmake]" in console.file.getvalue()
