"""The operators in onnxruntime: the kernels' products, and a sentence that names the node for whatever is malformed."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxscript import ir
from packed_models import FLOAT, packed_model, relative_error, run, save, session
from packed_weights import COLUMNS, ENCODINGS, PATTERNS, label, random_packed

from slimdeploy.kernels import operators, reference
from slimdeploy.kernels.library import library_file
from slimdeploy.packed import Encoding, PackedTensor, pack

LIBRARY = library_file()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
INT8 = Encoding("int8", 128)


def packed_of(encoding: Encoding, pattern: str, columns: int, rows: int = 33) -> PackedTensor:
    return random_packed(np.random.default_rng(columns), encoding, pattern, rows, columns)


def inputs(columns: int, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((1, count, columns)).astype(np.float32)


# -- products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_products_are_the_reference_and_those_of_stock_onnxruntime(
    encoding: Encoding, columns: int, count: int, tmp_path: Path
) -> None:
    weights = {pattern: packed_of(encoding, pattern, columns) for pattern in PATTERNS}
    file, x = save(packed_model(weights), tmp_path / "model.onnx"), inputs(columns, count)
    limit = 5e-3 if encoding.values == "bf16" else 1e-5
    ours, stock = run(file, x, LIBRARY), run(file, x)
    for name, packed in weights.items():
        assert relative_error(ours[name], reference.linear(packed, x)) < limit, name
        assert relative_error(ours[name], stock[name].astype(np.float64)) < limit, name


def test_with_the_library_the_operators_run_and_without_it_matmul(tmp_path: Path) -> None:
    file = save(packed_model({p: packed_of(INT8, p, 65) for p in ("unstructured", "dense")}), tmp_path / "model.onnx")

    def operators_in(library: Path | None) -> set[str]:
        opened = session(file, library, profile=tmp_path / "profile")
        opened.run(None, {"x": inputs(65, 1)})
        events = Path(opened.end_profiling()).read_text()
        return {kind for kind in ("SparseLinear", "DenseLinear", "MatMul") if f'"op_name" : "{kind}"' in events}

    assert operators_in(LIBRARY) == {"SparseLinear", "DenseLinear"}
    assert operators_in(None) == {"MatMul"}


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 1, 3, 5), (0, 5), (2, 0, 5)])
def test_inputs_of_any_rank_keep_their_outer_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    packed = packed_of(INT8, "unstructured", 5)
    model = packed_model({"w": packed})
    model.functions.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (y,) = session(save(model, tmp_path / "model.onnx"), LIBRARY).run(None, {"x": x})
    assert y.shape == (*shape[:-1], 33)
    np.testing.assert_allclose(y, reference.linear(packed, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
@pytest.mark.parametrize("pattern", ["unstructured", "dense"])
def test_a_session_of_float16_gives_float16(encoding: Encoding, pattern: str, tmp_path: Path) -> None:
    packed = packed_of(encoding, pattern, 65)
    model = packed_model({"w": packed})
    model.functions.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    x = inputs(65, 3).astype(np.float16)
    (y,) = session(save(model, tmp_path / "model.onnx"), LIBRARY).run(None, {"x": x})
    assert y.dtype == np.float16
    assert relative_error(y, reference.linear(packed, x.astype(np.float32))) < 1e-3


def test_every_float16_comes_back_as_it_was(tmp_path: Path) -> None:
    identity = pack(np.array([[1]], np.float32), Encoding("fp16"), "dense")
    model = packed_model({"w": identity})
    model.functions.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, -1, 1)
    (y,) = session(save(model, tmp_path / "model.onnx"), LIBRARY).run(None, {"x": every})
    np.testing.assert_array_equal(y, every)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_threads_and_simultaneous_runs_change_nothing(count: int, tmp_path: Path) -> None:
    packed = packed_of(INT8, "unstructured", 1040, rows=1031)  # enough for threads to be worth waking
    file = save(packed_model({"w": packed}), tmp_path / "model.onnx")
    opened = session(file, LIBRARY, threads=3)
    results: dict[int, Any] = {}

    def ask(seed: int) -> None:
        for _ in range(10):
            results[seed] = opened.run(None, {"x": inputs(1040, count, seed)})[0]

    callers = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for seed in range(4):
        np.testing.assert_array_equal(results[seed], run(file, inputs(1040, count, seed), LIBRARY)["w"])


# -- what is malformed ------------------------------------------------------------------------------------------


def with_attribute(name: str, value: Any) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        (node,) = model.graph
        node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


def with_array(part: str, change: Callable[[Any], Any]) -> Callable[[ir.Model], None]:
    """The array of one input, changed."""

    def changed(model: ir.Model) -> None:
        value = model.graph.initializers[f"w.{part}"]
        assert value.const_value is not None
        value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=value.name)
        value.shape, value.type = ir.Shape(value.const_value.shape.numpy()), ir.TensorType(value.const_value.dtype)

    return changed


def as_input(part: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        value = model.graph.initializers.pop(f"w.{part}")
        value.const_value = None
        model.graph.inputs.append(value)

    return change


def set_bit(mask: Any) -> Any:
    mask[3, -1] |= 0x80
    return mask


def not_a_number(scales: Any) -> Any:
    scales[2, 0] = np.nan
    return scales


@pytest.mark.parametrize(
    ("pattern", "change", "sentence"),
    [
        ("unstructured", with_attribute("columns", 0), "0 columns"),
        ("unstructured", with_attribute("columns", 2**40), "columns"),
        ("unstructured", with_attribute("columns", 129), "33 scales, not the 66"),
        ("unstructured", with_attribute("group", -1), "group is -1"),
        ("unstructured", with_attribute("group", 77), "group"),
        ("unstructured", with_attribute("pattern", "dense"), "pattern is 'dense'"),
        ("unstructured", with_attribute("pattern", "9:4"), "pattern is '9:4'"),
        ("unstructured", with_attribute("pattern", "2:4x"), "pattern is '2:4x'"),
        ("unstructured", with_attribute("pattern", " 2:4"), "pattern is ' 2:4'"),
        ("unstructured", with_attribute("pattern", "02:4"), "pattern is '02:4'"),
        ("unstructured", with_attribute("pattern", "2:65536"), "M at most 65535"),
        ("unstructured", with_attribute("pattern", "2:4"), "does not keep the pattern's share"),
        ("2:4", with_attribute("pattern", "1:4"), "does not keep the pattern's share"),
        (
            "unstructured",
            with_array("mask", lambda mask: mask[:-1]),
            r"scales have shape \[33, 1\], but it has 32 rows",
        ),
        ("unstructured", with_array("mask", lambda mask: mask[:, :-8]), "mask"),
        ("unstructured", with_array("mask", lambda mask: mask.ravel()), "'mask' has shape"),
        ("unstructured", with_array("mask", lambda mask: mask.astype(np.int8)), "'mask' has shape"),
        ("unstructured", with_array("mask", set_bit), "mask"),
        ("unstructured", with_array("values", lambda values: values[:-1]), "values"),
        ("unstructured", with_array("values", lambda values: np.append(values, values[:1])), "values"),
        ("unstructured", with_array("values", lambda values: values[None]), "values have shape"),
        ("unstructured", with_array("values", lambda values: values.astype(np.int32)), "values are of type"),
        ("unstructured", with_array("scales", lambda scales: scales[:-1]), "scales"),
        ("unstructured", with_array("scales", lambda scales: scales.astype(np.float32)), "'scales' has shape"),
        ("unstructured", with_array("scales", lambda scales: scales.T), r"scales have shape \[1, 33\]"),
        ("unstructured", with_array("scales", not_a_number), "scale"),
        ("unstructured", as_input("values"), "'values' is not a constant"),
        ("unstructured", as_input("mask"), "'mask' is not a constant"),
        ("dense", with_attribute("pattern", "unstructured"), "pattern is 'unstructured'"),
        ("dense", with_array("values", lambda values: values[:-1]), "but it has 32 rows"),
        ("dense", with_array("values", lambda values: values[:0]), "but it has 0 rows"),
    ],
)
def test_a_malformed_weight_is_refused_by_the_name_of_its_node(
    pattern: str, change: Callable[[ir.Model], None], sentence: str, tmp_path: Path
) -> None:
    model = packed_model({"w": packed_of(INT8, pattern, 65)})
    change(model)
    file = save(model, tmp_path / "model.onnx")
    with pytest.raises(Exception, match=rf"Linear 'w': .*{sentence}"):  # onnxruntime's errors share no other base
        session(file, LIBRARY)


def test_scales_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    model = packed_model({"w": packed_of(INT8, "unstructured", 65)})
    (node,) = model.graph
    model.graph.remove(node)
    shorter = ir.Node("slimdeploy", "SparseLinear", node.inputs[:3], node.attributes.values(), name="w")
    model.graph.append(shorter)
    shorter.outputs[0].name, shorter.outputs[0].type = "w", FLOAT
    model.graph.outputs[0] = shorter.outputs[0]
    with pytest.raises(Exception, match="SparseLinear 'w': its input 'scales' is not a constant"):
        session(save(model, tmp_path / "model.onnx"), LIBRARY)


@pytest.mark.parametrize("shape", [(1, 64), (1, 66), ()])
def test_an_input_of_another_width_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = packed_model({"w": packed_of(INT8, "unstructured", 65)})
    model.graph.inputs[0].shape = None
    model.graph.outputs[0].shape = None
    model.functions.clear()
    opened = session(save(model, tmp_path / "model.onnx"), LIBRARY)
    with pytest.raises(Exception, match=r"SparseLinear 'w': its input has shape .* but the weight has 65 columns"):
        opened.run(None, {"x": np.zeros(shape, np.float32)})


def test_an_instruction_set_can_be_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_of(INT8, "unstructured", 65)
    file = save(packed_model({"w": packed}), tmp_path / "model.onnx")
    monkeypatch.setenv("SLIMDEPLOY_KERNELS", "portable")
    x = inputs(65, 2)
    assert relative_error(run(file, x, LIBRARY)["w"], reference.linear(packed, x)) < 1e-5
    monkeypatch.setenv("SLIMDEPLOY_KERNELS", "abacus")
    with pytest.raises(Exception, match="abacus"):
        session(file, LIBRARY)


# -- memory -----------------------------------------------------------------------------------------------------


def test_the_pages_of_the_file_are_given_back_and_read_again_where_they_are_needed(tmp_path: Path) -> None:
    packed = packed_of(INT8, "unstructured", 4096, rows=2048)
    file = save(packed_model({"w": packed}), tmp_path / "model.onnx")
    x = inputs(4096, 1)
    first, second = session(file, LIBRARY), session(file, LIBRARY)
    resident = sum(resident_kilobytes(f"{file.name}_data"))
    assert resident * 1024 < packed.bytes / 4
    for opened in (first, second):
        assert relative_error(opened.run(None, {"x": x})[0], reference.linear(packed, x)) < 1e-5


def resident_kilobytes(name: str) -> list[int]:
    """Of every mapping of a file in this process; see proc_pid_smaps(5)."""
    sizes, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            sizes.append(int(line.split()[1]))
    return sizes


def test_weights_inside_a_graph_survive(tmp_path: Path) -> None:
    packed = packed_of(INT8, "unstructured", 4096, rows=64)
    ir.save(packed_model({"a": packed, "b": packed}), tmp_path / "model.onnx")
    x = inputs(4096, 1)
    for y in run(tmp_path / "model.onnx", x, LIBRARY).values():
        assert relative_error(y, reference.linear(packed, x)) < 1e-5


# -- registration -----------------------------------------------------------------------------------------------


def test_options_may_be_registered_many_times(tmp_path: Path) -> None:
    file = save(packed_model({"w": packed_of(INT8, "dense", 65)}), tmp_path / "model.onnx")
    for _ in range(3):
        options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
        operators.register_operators(options)
        opened = onnxruntime.InferenceSession(file, options)  # type: ignore[attr-defined]
        assert opened.run(None, {"x": inputs(65, 1)})[0].shape == (1, 1, 33)
    assert operators.missing_operators() is None
    assert operators.fallback_note() is None


def test_a_weight_of_another_value_type_needs_no_other_operator(tmp_path: Path) -> None:
    weights = {label(encoding): packed_of(encoding, "unstructured", 65) for encoding in ENCODINGS if encoding.group}
    weights["rows"] = replace(packed_of(Encoding("int8"), "unstructured", 65))
    x = inputs(65, 4)
    for name, y in run(save(packed_model(weights), tmp_path / "model.onnx"), x, LIBRARY).items():
        assert relative_error(y, reference.linear(weights[name], x)) < 1e-5, name
