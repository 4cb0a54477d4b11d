"""Where zeros gain nothing, it is said in words."""

from typing import Any

import pytest

from slimdeploy import gain, layouts
from slimdeploy.artifact import Manifest
from slimdeploy.gain import missing_gains
from slimdeploy.kernels.library import LayoutChoice
from slimdeploy.packed import Encoding

LARGE = 2048


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is faster with zeros where less than half of the weights are pruned, whatever this one is."""

    def choice(_: Encoding, kept: float) -> LayoutChoice:
        return LayoutChoice("dense", 50.0, 30.0) if kept > 0.5 else LayoutChoice("sparse", 20, 30)

    monkeypatch.setattr(gain, "fallback_note", lambda: None)
    monkeypatch.setattr(layouts, "layout_choice", choice)


def row(side: int = LARGE, share: float = 0.6, kept: float = 0.3, pattern: str = "unstructured") -> dict[str, Any]:
    """A matrix, packed into `share` of the bytes that its codes would take."""
    size = side * side
    return {"rows": side, "columns": side, "kept": round(kept * size), "pattern": pattern, "bytes": int(share * size)}


def manifest(*rows: dict[str, Any], **changes: Any) -> Manifest:
    values = {"format": "onnx", "model": "m", "family": "f", "sparsity": 0.5, "layers": list(rows)}
    return Manifest(**(values | {"verification": {"weights": "packed-int8"}} | changes))


formats = pytest.mark.parametrize("form", ["onnx", "checkpoint"])


@formats
@pytest.mark.usefixtures("with_kernels")
def test_a_gain_needs_no_words(form: str) -> None:
    assert missing_gains(manifest(row(), row(kept=0.5, pattern="32:64"), format=form)) == ()


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("changes", [{"verification": {"weights": "dense-int8"}}, {"verification": {}}])
def test_what_promises_no_gain_needs_none(changes: dict[str, Any]) -> None:
    assert missing_gains(manifest(row(share=1.5), **changes)) == ()


@formats
@pytest.mark.usefixtures("with_kernels")
def test_masks_that_cost_what_zeros_save_are_told(form: str) -> None:
    [note] = missing_gains(manifest(row(share=1.1), format=form))
    assert "masks would take what the zeros save" in note
    assert "search.budget.sparsity" in note


@pytest.mark.usefixtures("with_kernels")
def test_matrices_in_the_caches_gain_no_time() -> None:
    # The larger one is stored without a mask, and has no zeros to gain from.
    [note] = missing_gains(manifest(row(side=64), row(share=1 + 1 / 64)))
    assert "4,096 weights" in note
    assert "caches" in note


@formats
@pytest.mark.usefixtures("with_kernels")
def test_a_cpu_that_is_faster_with_zeros_is_told_for_how_many_matrices(form: str) -> None:
    rows = [row(), row(kept=0.55), row(kept=0.6), row(kept=0.5, pattern="32:64"), row(side=64, kept=0.5)]
    [note] = missing_gains(manifest(*rows, format=form))
    assert "2 of the 5 packed matrices are faster with their zeros" in note
    assert "(packed int8 weights, 40% to 45% pruned: held dense in memory (30 ns" in note


@formats
def test_missing_kernels_are_told(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(gain, "fallback_note", lambda: "no kernels: install g++")
    assert missing_gains(manifest(row(), format=form)) == ("no kernels: install g++",)
