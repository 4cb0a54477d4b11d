"""Where zeros gain nothing, it is said in words."""

from typing import Any

import pytest

from slimdeploy import gain
from slimdeploy.artifact import Manifest
from slimdeploy.gain import missing_gains
from slimdeploy.kernels.library import LayoutChoice

LARGE = 2048


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which sparse weights are the faster ones, whatever this one is."""
    monkeypatch.setattr(gain, "fallback_note", lambda: None)
    monkeypatch.setattr(gain, "layout_choice", lambda *_: LayoutChoice("sparse", 20.0, 30.0))


def manifest(side: int = LARGE, share: float = 0.6, **changes: Any) -> Manifest:
    """One matrix, packed into `share` of the bytes that its codes would take."""
    row = {"name": "layer", "rows": side, "columns": side, "bytes": int(side * side * share)}
    values = {"format": "onnx", "model": "m", "family": "f", "sparsity": 0.5, "layers": [row]}
    return Manifest(**(values | {"verification": {"weights": "packed-int8"}} | changes))


@pytest.mark.usefixtures("with_kernels")
def test_a_gain_needs_no_words() -> None:
    assert missing_gains(manifest()) == ()


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("changes", [{"verification": {"weights": "dense-int8"}}, {"format": "checkpoint"}])
def test_what_promises_no_gain_needs_none(changes: dict[str, Any]) -> None:
    assert missing_gains(manifest(share=1.5, **changes)) == ()


@pytest.mark.usefixtures("with_kernels")
def test_masks_that_cost_what_zeros_save_are_told() -> None:
    [note] = missing_gains(manifest(share=1.1))
    assert "masks take what the zeros save" in note
    assert "search.budget.sparsity" in note


@pytest.mark.usefixtures("with_kernels")
def test_matrices_in_the_caches_gain_no_time() -> None:
    [note] = missing_gains(manifest(side=64))
    assert "4,096 weights" in note
    assert "caches" in note


def test_a_cpu_that_is_faster_with_zeros_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "fallback_note", lambda: None)
    monkeypatch.setattr(gain, "layout_choice", lambda *_: LayoutChoice("dense", 50.0, 30.0))
    [note] = missing_gains(manifest())
    assert "int8 weights are faster with their zeros (30 ns" in note


def test_missing_kernels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "fallback_note", lambda: "no kernels: install g++")
    assert missing_gains(manifest()) == ("no kernels: install g++",)
