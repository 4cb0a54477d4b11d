"""Attention by our operator in onnxruntime: its own answers, with and without the library, in one buffer or in two."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import ir
from packed_models import FLOAT, OPSET, relative_error, session

from slimdeploy.exporters.onnx_attention import ATTENTION, use_own_attention
from slimdeploy.kernels import reference
from slimdeploy.kernels.library import instruction_set_in_use, library_file
from slimdeploy.kernels.operators import DOMAIN

LIBRARY = library_file()
TOLERANCE = 2e-5 if LIBRARY and instruction_set_in_use() == "amx" else 1e-6
"""Tiles multiply halves of numbers, and leave out the products of low ones."""
HEADS, KV_HEADS, SIZE = 6, 2, 24
SCALE = 0.2
Arrays = dict[str, NDArray[Any]]


def model_of(**attributes: float) -> ir.Model:
    """A node of attention as it is traced, with our operator in its place where that can do it."""
    shapes: dict[str, list[str | int]] = {
        "query": ["batch", "tokens", HEADS * SIZE],
        "key": ["batch", "tokens", KV_HEADS * SIZE],
        "value": ["batch", "tokens", KV_HEADS * SIZE],
        "past_key": ["batch", KV_HEADS, "past", SIZE],
        "past_value": ["batch", KV_HEADS, "past", SIZE],
    }
    whole = ir.TensorType(ir.DataType.INT32)
    inputs = [ir.Value(name=name, shape=ir.Shape(shape), type=FLOAT) for name, shape in shapes.items()]
    inputs += [ir.Value(name="last", shape=ir.Shape(["batch"]), type=whole)]
    inputs += [ir.Value(name="longest", shape=ir.Shape([]), type=whole)]
    given = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": SCALE, **attributes}
    node = ir.node(ATTENTION, inputs, given, domain="com.microsoft", num_outputs=3, name="attention")
    names = {"output": shapes["query"], "present_key": shapes["past_key"], "present_value": shapes["past_key"]}
    for output, (name, shape) in zip(node.outputs, names.items(), strict=True):
        free = [size if isinstance(size, int) else f"{name}_{size}" for size in shape]
        output.name, output.type, output.shape = name, FLOAT, ir.Shape(free)
    imports = {"": OPSET, "com.microsoft": 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports, name="attention")
    model = ir.Model(graph, ir_version=10)
    use_own_attention(model)
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ir.save(model_of(), tmp_path / "attention.onnx")
    return tmp_path / "attention.onnx"


def inputs(tokens: int, past: int, last: list[int]) -> Arrays:
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    batch = len(last)
    return {
        "query": floats(batch, tokens, HEADS * SIZE),
        "key": floats(batch, tokens, KV_HEADS * SIZE),
        "value": floats(batch, tokens, KV_HEADS * SIZE),
        "past_key": floats(batch, KV_HEADS, past, SIZE),
        "past_value": floats(batch, KV_HEADS, past, SIZE),
        "last": np.array(last, np.int32),
        "longest": np.array(max(last) + 1, np.int32),
        "cache_rows": np.empty(0, np.int64),
    }


def expected(given: Arrays) -> NDArray[np.float64]:
    batch, tokens, _ = given["query"].shape
    query, key, value = (given[name].reshape(batch, tokens, -1, SIZE) for name in ("query", "key", "value"))
    past = given["past_key"], given["past_value"]
    return reference.attention(query, key, value, past, given["last"].tolist(), SCALE).reshape(batch, tokens, -1)


@pytest.mark.parametrize("library", [LIBRARY, None], ids=["ours", "stock"])
@pytest.mark.parametrize(
    ("tokens", "past", "last"),
    [(1, 40, [33]), (1, 40, [33, 0, 12]), (7, 0, [6]), (7, 0, [6, 2]), (5, 9, [13]), (5, 30, [13])],
)
def test_with_the_library_and_without_it_attention_is_float64s(
    library: Path | None, tokens: int, past: int, last: list[int], file: Path
) -> None:
    given = inputs(tokens, past, last)
    output, key, value = session(file, library).run(None, given)
    for b, number in enumerate(last):
        new = min(number + 1, tokens)  # stock onnxruntime says nothing of padding
        assert relative_error(output[b, :new], expected(given)[b, :new]) < TOLERANCE
        for present, fresh in ((key, given["key"]), (value, given["value"])):
            rows = fresh[b, :new].reshape(new, KV_HEADS, SIZE).swapaxes(0, 1)
            np.testing.assert_array_equal(present[b, :, number + 1 - new : number + 1], rows)
    assert key.shape == value.shape == (len(last), KV_HEADS, max(past, max(last) + 1), SIZE)


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
def test_one_buffer_as_past_and_present_is_written_to_in_place(file: Path) -> None:
    given = inputs(1, 40, [33])
    exact = expected(given)
    opened = session(file, LIBRARY)
    binding = opened.io_binding()
    for name, array in given.items():
        if not name.startswith("past"):
            binding.bind_cpu_input(name, array)
    for name in ("key", "value"):
        buffer = onnxruntime.OrtValue.ortvalue_from_numpy(given[f"past_{name}"])  # type: ignore[attr-defined]
        binding.bind_ortvalue_input(f"past_{name}", buffer)
        binding.bind_ortvalue_output(f"present_{name}", buffer)
    binding.bind_output("output")
    before = given["past_key"].copy()
    opened.run_with_iobinding(binding)
    assert relative_error(binding.get_outputs()[-1].numpy(), exact) < TOLERANCE
    before[0, :, 33] = given["key"].reshape(KV_HEADS, SIZE)
    np.testing.assert_array_equal(given["past_key"], before)


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
def test_a_batch_may_have_several_tokens_behind_others(file: Path) -> None:
    """Which onnxruntime's own operator refuses."""
    given = inputs(4, 20, [15, 9])
    output = session(file, LIBRARY).run(None, given)[0]
    assert relative_error(output, expected(given)) < TOLERANCE


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
def test_sequences_have_the_rows_of_the_caches_that_they_are_given(file: Path) -> None:
    given = inputs(1, 20, [15, 9])
    exact = expected(given)
    caches = {f"past_{name}": np.zeros((5, KV_HEADS, 20, SIZE), np.float32) for name in ("key", "value")}
    for name, cache in caches.items():
        cache[[4, 1]] = given[name]
    rows = {"cache_rows": np.array([4, 1], np.int64)}
    output, key, _ = session(file, LIBRARY).run(None, given | caches | rows)
    assert relative_error(output, exact) < TOLERANCE
    assert key.shape == (5, KV_HEADS, 20, SIZE)
    np.testing.assert_array_equal(key[4, :, 15], given["key"][0].reshape(KV_HEADS, SIZE))


@pytest.mark.parametrize("attributes", [{"local_window_size": 8}, {"softcap": 30.0}, {"causal": 0}])
def test_what_is_more_than_causal_stays_onnxruntimes(attributes: dict[str, float]) -> None:
    model = model_of(**attributes)
    assert [node.domain for node in model.graph] == ["com.microsoft"]
    assert DOMAIN not in model.graph.opset_imports
    assert not model.functions


def test_where_one_layer_has_a_window_all_stay_onnxruntimes() -> None:
    """Its operator knows no rows of caches: sequences would read each other's keys."""
    model, windowed = model_of(), model_of(local_window_size=8)
    (ours,) = model.graph
    ours.domain = "com.microsoft"
    ours.resize_inputs(7)
    (theirs,) = windowed.graph
    windowed.graph.remove(theirs)
    model.graph.append(theirs)
    model.functions.clear()
    use_own_attention(model)
    assert {node.domain for node in model.graph} == {"com.microsoft"}
    assert not model.functions


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"last": np.array([40], np.int32)}, "last token is number 40 of 34"),
        ({"last": np.array([-1], np.int32)}, "last token is number -1 of 34"),
        ({"past_value": np.zeros((1, KV_HEADS, 39, SIZE), np.float32)}, r"'past_value' has shape \[1, 2, 39, 24\]"),
        ({"key": np.zeros((1, 2, KV_HEADS * SIZE), np.float32)}, r"'key' has shape \[1, 2, 48\], not \[1, 1, 48\]"),
        ({"last": np.array([3, 3], np.int32)}, r"'seqlens_k' has shape \[2\], not \[1\]"),
        ({"cache_rows": np.array([0, 0])}, r"'cache_rows' has shape \[2\], not \[1\]"),
        ({"cache_rows": np.array([1])}, "is to have row 1 of a cache with 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_the_nodes_name(changed: Arrays, sentence: str, tmp_path: Path) -> None:
    model = model_of()
    model.functions.clear()
    for value in model.graph.inputs:
        value.shape = None
    ir.save(model, tmp_path / "attention.onnx")
    opened = session(tmp_path / "attention.onnx", LIBRARY)
    with pytest.raises(Exception, match=f"GroupQueryAttention 'attention': .*{sentence}"):
        opened.run(None, inputs(1, 40, [33]) | changed)


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not built")
def test_heads_that_do_not_divide_are_refused_when_the_session_is_made(tmp_path: Path) -> None:
    model = model_of(kv_num_heads=4)
    model.functions.clear()
    ir.save(model, tmp_path / "attention.onnx")
    with pytest.raises(Exception, match="GroupQueryAttention 'attention': it has 6 heads and 4 of keys and values"):
        session(tmp_path / "attention.onnx", LIBRARY)
