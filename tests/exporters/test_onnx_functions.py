"""What stock onnxruntime computes of packed weights is what the format says, for everything that the format holds."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxscript import ir
from packed_models import packed_model, relative_error, run, save
from packed_weights import COLUMNS, ENCODINGS, PATTERNS, assert_same, label, random_packed

from slimdeploy.exporters.onnx_functions import DENSE, SPARSE
from slimdeploy.exporters.onnx_packed import read_packed
from slimdeploy.kernels import reference
from slimdeploy.packed import Encoding, PackedTensor, pack


def weights_of(encoding: Encoding, columns: int, rows: int = 33) -> dict[str, PackedTensor]:
    """One of every pattern."""
    rng = np.random.default_rng(columns)
    return {pattern: random_packed(rng, encoding, pattern, rows, columns) for pattern in PATTERNS}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_every_value_type_and_pattern_gives_the_product_of_the_reference(
    encoding: Encoding, columns: int, tmp_path: Path
) -> None:
    weights = weights_of(encoding, columns)
    file = save(packed_model(weights), tmp_path / "model.onnx")
    onnx.checker.check_model(file)
    x = np.random.default_rng(0).standard_normal((2, 3, columns)).astype(np.float32)
    for name, y in run(file, x).items():
        assert relative_error(y, reference.linear(weights[name], x)) < 1e-6, name


@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_a_matrix_that_keeps_nothing_gives_zeros(encoding: Encoding, tmp_path: Path) -> None:
    weights = {"empty": pack(np.zeros((5, 70), np.float32), encoding, "unstructured")}
    file = save(packed_model(weights), tmp_path / "model.onnx")
    assert not run(file, np.ones((1, 1, 70), np.float32))["empty"].any()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_row_only(encoding: Encoding, value: float, tmp_path: Path) -> None:
    weights = {"w": pack(np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32), encoding, "dense")}
    x = np.ones((1, 3, 64), np.float32)
    x[0, 1, 5] = value
    y = run(save(packed_model(weights), tmp_path / "model.onnx"), x)["w"]
    assert not np.isfinite(y[0, 1]).any()
    assert np.isfinite(y[0, [0, 2]]).all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_all_work_on_weights_is_done_when_the_model_is_loaded(encoding: Encoding, tmp_path: Path) -> None:
    weights = {name: weights_of(encoding, 65)[name] for name in ("unstructured", "dense")}
    file = save(packed_model(weights), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # type: ignore[attr-defined]
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(file, options)  # type: ignore[attr-defined]
    left = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert left["MatMul"] == 2
    assert set(left) <= {"MatMul", "Cast", "Abs", "ReduceMax", "Max", "Div", "Mul", "Round"}


@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_a_file_gives_the_packed_weights_back_bit_for_bit(encoding: Encoding, tmp_path: Path) -> None:
    weights = weights_of(encoding, 65)
    graph = ir.load(save(packed_model(weights), tmp_path / "model.onnx")).graph
    stored = {str(node.name): read_packed(node) for node in graph}
    assert set(stored) == set(weights)
    for name, packed in weights.items():
        assert_same(stored[name], packed)


def test_a_file_holds_the_functions_that_its_nodes_need_and_no_other(tmp_path: Path) -> None:
    weights = weights_of(Encoding("int8", 128), 65)
    for name, function in (("unstructured", SPARSE), ("dense", DENSE)):
        model = packed_model({name: weights[name]})
        assert [identifier[:2] for identifier in model.functions] == [("slimdeploy", function)]
        (node,) = model.graph
        assert (node.name, node.domain, node.op_type) == (name, "slimdeploy", function)
        assert not [value for value in model.graph.initializers if value.endswith(".weight")]
