"""The torch operator: it computes what the reference says, follows its weight, and refuses what it cannot do."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_weights import ENCODINGS, random_packed
from stand_in_kernels import ReferenceLinear
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from slimdeploy import sparse_linear
from slimdeploy.errors import ArtifactError
from slimdeploy.kernels import library, reference
from slimdeploy.packed import Encoding, PackedTensor
from slimdeploy.packed_linear import PackedLinear
from slimdeploy.sparse_linear import Weight, round_activations

ROWS, COLUMNS = 9, 200


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> type[ReferenceLinear]:
    """The reference in the place of the compiled kernels."""

    class Counted(ReferenceLinear):
        made, threads = 0, []

    monkeypatch.setattr(library, "library_file", lambda: Path("stand-in"))
    monkeypatch.setattr(library, "Linear", Counted)
    return Counted


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "library_file", lambda: None)
    sparse_linear._warn_of_unpacking.cache_clear()
    yield
    sparse_linear._warn_of_unpacking.cache_clear()


@pytest.fixture(params=["compiled", "unpacked"])
def product(request: pytest.FixtureRequest) -> None:
    """Each way to compute the product."""
    if request.param == "unpacked":
        request.getfixturevalue("no_kernels")
    elif library.library_file() is None:
        pytest.skip("the kernels were not built: install g++ and cmake, then slimdeploy again")


def packed_weight(encoding: Encoding, pattern: str = "unstructured", seed: int = 0) -> PackedTensor:
    return random_packed(np.random.default_rng(seed), encoding, pattern, ROWS, COLUMNS)


def arguments(packed: PackedTensor) -> tuple[Any, ...]:
    arrays = (torch.from_numpy(array) for array in (packed.mask, packed.values, packed.scales))
    return (*arrays, packed.columns, packed.encoding.values, packed.encoding.group, packed.pattern)


def multiply(x: Tensor, *weight: Any) -> Tensor:
    y: Tensor = torch.ops.slimdeploy.sparse_linear(x, *weight)
    return y


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("pattern", ["unstructured", "32:64", "dense"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5)], ids=str)
def test_the_product_is_the_reference(encoding: Encoding, pattern: str, shape: tuple[int, ...]) -> None:
    packed = packed_weight(encoding, pattern)
    x = activations(*shape)
    y = multiply(x, *arguments(packed))
    expected = reference.linear(packed, x.numpy())
    assert y.shape == (*shape, ROWS)
    assert y.dtype == torch.float32
    assert np.linalg.norm(y.numpy() - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_activations_are_rounded_as_in_the_reference(encoding: Encoding) -> None:
    x = torch.cat([activations(20), torch.zeros(1, COLUMNS), 1e-38 * activations(1), 1e30 * activations(1)])
    rounded = round_activations(x, encoding.values)
    expected = reference.round_activations(encoding, x.numpy())
    np.testing.assert_allclose(rounded.numpy(), expected, rtol=2e-7)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_does_not_become_finite(encoding: Encoding, value: float) -> None:
    weight = arguments(packed_weight(encoding, "dense"))
    x = activations(3)
    expected = multiply(x, *weight)
    x[1, 7] = value
    y = multiply(x, *weight)
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


@pytest.mark.usefixtures("product")
def test_no_rows_give_no_rows() -> None:
    assert multiply(activations(0), *arguments(packed_weight(Encoding("int8")))).shape == (0, ROWS)
    assert multiply(activations(2, 0), *arguments(packed_weight(Encoding("int8")))).shape == (2, 0, ROWS)


@pytest.mark.usefixtures("product")
def test_activations_need_not_be_contiguous() -> None:
    weight = arguments(packed_weight(Encoding("int8")))
    x = activations(4, 6).transpose(0, 1)
    assert torch.equal(multiply(x, *weight), multiply(x.contiguous(), *weight))


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_torch_accepts_the_operator(encoding: Encoding) -> None:
    weight = arguments(packed_weight(encoding))
    for x in (activations(), activations(2, 3)):
        torch.library.opcheck(torch.ops.slimdeploy.sparse_linear.default, (x, *weight))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_is_one_graph_and_lays_its_weight_out_once(
    kernels: type[ReferenceLinear], backend: str
) -> None:
    torch.compiler.reset()
    layer = PackedLinear.of(packed_weight(Encoding("int4", 32)), torch.randn(ROWS))
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for x in (activations(1), activations(1), activations(4), activations(7)):
        assert torch.equal(compiled(x), layer(x))
    assert kernels.made == 1


def test_a_weight_is_laid_out_once_and_released_with_its_values(kernels: type[ReferenceLinear]) -> None:
    gc.collect()
    before = len(sparse_linear._prepared)
    weight = arguments(packed_weight(Encoding("int8")))
    for _ in range(3):
        multiply(activations(1), *weight)
    assert kernels.made == 1
    assert len(sparse_linear._prepared) == before + 1
    del weight
    gc.collect()
    assert len(sparse_linear._prepared) == before


@pytest.mark.parametrize("array", [0, 1, 2], ids=["mask", "values", "scales"])
@pytest.mark.usefixtures("kernels")
def test_a_weight_that_is_overwritten_or_exchanged_is_laid_out_again(array: int) -> None:
    first, second = (
        list(arguments(packed_weight(Encoding("bf16" if array < 2 else "int8"), "32:64", s))) for s in (0, 1)
    )
    x = activations(2)
    multiply(x, *first)
    mixed = [*first]
    mixed[array] = second[array]
    expected = multiply(x, *(argument.clone() if isinstance(argument, Tensor) else argument for argument in mixed))
    assert torch.equal(multiply(x, *mixed), expected)
    first[array].copy_(second[array])
    assert torch.equal(multiply(x, *first), expected)


@pytest.mark.usefixtures("kernels")
def test_inference_mode_works() -> None:
    weight = arguments(packed_weight(Encoding("int8")))
    expected = multiply(activations(2), *weight)
    with torch.inference_mode():
        copies = [argument.clone() if isinstance(argument, Tensor) else argument for argument in weight]
        assert torch.equal(multiply(activations(2), *copies), expected)


@pytest.mark.usefixtures("product")
def test_an_inference_tensor_that_was_written_to_is_noticed_when_it_is_prepared_again() -> None:
    x, other = activations(2), arguments(packed_weight(Encoding("int8"), "dense", seed=1))
    with torch.inference_mode():
        first = arguments(packed_weight(Encoding("int8"), "dense"))
        weight = Weight(*first[:3], COLUMNS, Encoding("int8"), "dense")
        arrays = weight.mask, weight.values, weight.scales
        multiply(x, *arrays, *weight.description)
        weight.values.copy_(other[1])
        weight.scales.copy_(other[2])
        sparse_linear.prepare(weight, "q_proj")
        assert torch.equal(multiply(x, *arrays, *weight.description), multiply(x, *other))


def test_the_threads_are_torchs(kernels: type[ReferenceLinear], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    multiply(activations(1), *arguments(packed_weight(Encoding("int8"))))
    assert kernels.threads == [3]


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            multiply(activations(1), *arguments(packed_weight(Encoding("int8"), seed=seed)))
    assert [record.message for record in caplog.records if "not installed" in record.message] == [caplog.messages[0]]
    assert "install" in caplog.messages[0]


@pytest.mark.usefixtures("kernels")
def test_how_weights_are_held_is_said_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    sparse_linear._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "slimdeploy"):
        for pattern, seed in (("32:64", 0), ("32:64", 1), ("20:64", 2), ("dense", 3)):
            multiply(activations(1), *arguments(packed_weight(Encoding("int4", 32), pattern, seed)))
        multiply(activations(1), *arguments(packed_weight(Encoding("bf16"), "32:64")))
    small = "held sparse in memory (below 1,048,576 weights nothing is measured)"
    assert caplog.messages == [f"packed int4 weights: {small}", f"packed bf16 weights: {small}"]


@pytest.mark.usefixtures("kernels")
def test_activations_of_another_type_or_shape_are_refused() -> None:
    weight = arguments(packed_weight(Encoding("int8")))
    with pytest.raises(TypeError, match=r"bfloat16.*float32"):
        multiply(activations(1).bfloat16(), *weight)
    for x in (torch.zeros(2, COLUMNS + 1), torch.zeros(())):
        with pytest.raises(ValueError, match=f"{COLUMNS} columns"):
            multiply(x, *weight)


def test_tensors_on_another_device_are_refused() -> None:
    packed = packed_weight(Encoding("int8"))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=r"cuda.*CPU"):
        multiply(torch.zeros(1, COLUMNS, device="cuda"), *arguments(packed))
    elsewhere = torch.empty(packed.values.shape, dtype=torch.int8, device="meta")
    mask, _, scales = (torch.from_numpy(array) for array in (packed.mask, packed.values, packed.scales))
    with pytest.raises(ValueError, match=r"values is on meta.*CPU"):
        sparse_linear.prepare(Weight(mask, elsewhere, scales, COLUMNS, packed.encoding, packed.pattern), "q_proj")


@pytest.mark.usefixtures("kernels")
def test_hostile_weights_are_refused_by_name() -> None:
    mask, values, scales, *rest = arguments(packed_weight(Encoding("int8")))
    with pytest.raises(ArtifactError, match="argument of sparse_linear"):
        multiply(activations(1), mask, values[:-1].clone(), scales, *rest)
    with pytest.raises(ArtifactError, match=r"'blocks\.0\.q_proj'.*scale"):
        sparse_linear.prepare(
            Weight(mask, values, scales * 0, COLUMNS, Encoding("int8"), "unstructured"), "blocks.0.q_proj"
        )
    with pytest.raises(TypeError, match=r"scales is of type torch\.bfloat16"):
        multiply(activations(1), mask, values, scales.view(torch.bfloat16), *rest)
    with pytest.raises(ArtifactError, match="2:4"):
        multiply(activations(1), mask, values, scales, COLUMNS, "int8", 0, "2:4")
