"""How packed matrices are held in memory is found matrix by matrix, and said in one line for each way."""

import logging
from typing import Any

import numpy as np
import pytest

from slimdeploy import layouts
from slimdeploy.artifact import Manifest
from slimdeploy.kernels.library import WORTH_MEASURING, Layout, LayoutChoice, Linear, instruction_sets, library_file
from slimdeploy.kernels.library import layout_choice as measured_choice
from slimdeploy.layouts import held, packed_matrices
from slimdeploy.packed import Encoding, PackedTensor, pack
from slimdeploy.packed_description import Description
from slimdeploy.packed_tensor import ALL_KEPT, dense_bytes

INT8 = Encoding("int8", 128)
SIDE = 2048


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Encoding, float]]:
    """What was asked of a machine that is faster with zeros where less than half of them are pruned."""
    asked = []

    def choice(encoding: Encoding, kept: float) -> LayoutChoice:
        asked.append((encoding, kept))
        return LayoutChoice("dense", 40, 25) if kept > 0.5 else LayoutChoice("sparse", 18, 25)

    monkeypatch.setattr(layouts, "layout_choice", choice)
    return asked


def matrix(kept: float, pattern: str = "unstructured", side: int = SIDE, encoding: Encoding = INT8) -> Description:
    return Description(side, side, encoding, pattern, round(kept * side * side))


def test_each_way_is_said_once_with_the_shares_that_it_holds_for(asked: list[Any]) -> None:
    found = held([matrix(0.4), matrix(0.75), matrix(0.3), matrix(0.5, "32:64"), matrix(0.5, side=64)])
    assert [str(each) for each in found] == [
        "packed int8 weights, 50% to 70% pruned: held sparse in memory (18 ns per 1000 weights; dense 25)",
        "packed int8 weights, 25% pruned: held dense in memory (25 ns per 1000 weights; sparse 40)",
        "packed int8 weights, 50% pruned: held sparse in memory (below 1,048,576 weights nothing is measured)",
    ]
    assert [each.log_level for each in found] == [logging.INFO, logging.WARNING, logging.INFO]
    assert [kept for _, kept in asked] == pytest.approx([0.4, 0.75, 0.3, 0.5], abs=1e-6)


def test_a_matrix_without_a_mask_has_no_choice(asked: list[Any]) -> None:
    assert held([matrix(1, ALL_KEPT)]) == []
    assert asked == []


@pytest.mark.parametrize("weights", ["packed-int4", "packed-int8", "packed-bf16"])
def test_a_manifest_tells_how_each_matrix_is_stored(weights: str) -> None:
    encoding = layouts.ENCODINGS[weights]
    row = {"rows": 3, "columns": 200, "pattern": "32:64", "kept": 300}
    full = dense_bytes(3, 200, encoding)
    rows = [row | {"bytes": full - 1}, row | {"bytes": full}]
    manifest = Manifest("checkpoint", "m", "f", layers=rows, verification={"weights": weights})
    masked, plain = packed_matrices(manifest)
    assert masked == Description(3, 200, encoding, "32:64", 300)
    assert plain == Description(3, 200, encoding, ALL_KEPT, 600)


def test_what_is_not_packed_has_no_packed_matrices() -> None:
    rows = [{"rows": 3, "columns": 200, "pattern": "32:64", "kept": 300, "bytes": 2400}]
    for verification in ({"weights": "dense-int8"}, {}):
        assert packed_matrices(Manifest("onnx", "m", "f", layers=rows, verification=verification)) == []


def packed_matrix(encoding: Encoding, rows: int, columns: int = 1024) -> PackedTensor:
    weight = np.tile(np.float32([1, 0]), rows * columns // 2).reshape(rows, columns)
    return pack(weight, encoding, "unstructured")


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
@pytest.mark.parametrize("name", [each.name for each in instruction_sets() if each.supported] if library_file() else [])
@pytest.mark.parametrize("encoding", [Encoding("int4", 128), INT8, Encoding("bf16")], ids=str)
def test_what_is_said_is_what_the_library_does(name: str, encoding: Encoding) -> None:
    choice = measured_choice(encoding, 0.5, name)
    rows = WORTH_MEASURING // 1024
    expected: dict[int, Layout] = {rows: choice.layout, rows - 1: "sparse"}
    for count, layout in expected.items():
        assert Linear(packed_matrix(encoding, count), instruction_set=name).layout == layout
