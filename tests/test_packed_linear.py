"""The packed layer: a module like any other, but for gradients and other devices than the CPU."""

import copy
import gc
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from slimdeploy import sparse_linear
from slimdeploy.errors import ArtifactError
from slimdeploy.packed import Encoding, PackedTensor, ValueType, pack, unpack, write_packed
from slimdeploy.packed_linear import PackedLinear
from slimdeploy.sparse_linear import round_activations

ROWS, COLUMNS = 12, 70


def sparse_weight(seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    smallest = weight.argsort(axis=None)[: weight.size // 2]
    weight.flat[smallest] = 0
    return weight


def packed_weight(values: ValueType = "int8", seed: int = 0) -> PackedTensor:
    return pack(sparse_weight(seed), Encoding(values), "unstructured")


@pytest.fixture
def layer() -> PackedLinear:
    return PackedLinear.of(packed_weight(), torch.linspace(-1, 1, ROWS))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("values", ["bf16", "fp16", "int8"])
def test_it_is_a_linear_layer_with_the_unpacked_weight(values: ValueType, bias: bool, x: Tensor) -> None:
    packed = packed_weight(values)
    dense = nn.Linear(COLUMNS, ROWS, bias)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(unpack(packed)))
        layer = PackedLinear.of(packed, dense.bias.detach() if bias else None)
        torch.testing.assert_close(layer(x), dense(round_activations(x, values)), rtol=1e-5, atol=1e-5)
    assert (layer.in_features, layer.out_features) == (dense.in_features, dense.out_features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_result_has_the_type_of_the_input(layer: PackedLinear, x: Tensor, dtype: torch.dtype) -> None:
    half = x.to(dtype)
    assert torch.equal(layer(half), layer(half.float()).to(dtype))


def test_casting_the_module_leaves_its_arrays_alone(layer: PackedLinear, x: Tensor) -> None:
    expected = layer(x)
    cast = layer.to(torch.bfloat16)
    assert cast.values.dtype == torch.int8
    assert cast.scales.dtype == torch.uint16
    assert cast.bias is not None
    assert cast.bias.dtype == torch.bfloat16
    torch.testing.assert_close(cast(x), expected, rtol=1e-2, atol=1e-2)


def test_copies_and_pickles_are_equal_and_independent(layer: PackedLinear, x: Tensor) -> None:
    expected = layer(x)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), _through_torch_save(layer), layer.to("cpu")]
    for other in copies:
        assert torch.equal(other(x), expected)
        assert other.scales.dtype == layer.scales.dtype
    with torch.no_grad():
        copies[0].values.zero_()
    assert torch.equal(layer(x), expected)
    assert not torch.equal(copies[0](x), expected)


def _through_torch_save(layer: PackedLinear) -> PackedLinear:
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    loaded: PackedLinear = torch.load(stream, weights_only=False)
    return loaded


def test_the_state_is_what_the_file_holds(layer: PackedLinear, x: Tensor) -> None:
    assert set(layer.state_dict()) == {"mask", "values", "scales", "bias"}
    assert set(PackedLinear.of(packed_weight("bf16")).state_dict()) == {"mask", "values"}
    assert set(PackedLinear.of(pack(sparse_weight(), Encoding("fp16"), "dense")).state_dict()) == {"values"}
    other = PackedLinear.of(packed_weight(seed=1), torch.zeros(ROWS))
    before = other(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert not torch.equal(other(x), before)


def test_it_gives_its_weight_back(layer: PackedLinear) -> None:
    np.testing.assert_array_equal(unpack(layer.packed()), unpack(packed_weight()))


def test_memory_goes_with_the_module(x: Tensor) -> None:
    layer = PackedLinear.of(packed_weight())
    layer(x)
    gc.collect()
    before = len(sparse_linear._prepared)
    del layer
    assert len(sparse_linear._prepared) == before - 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to give pages back")
def test_arrays_in_a_file_give_their_memory_back_once_the_layer_is_prepared(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    file = tmp_path / "packed.safetensors"
    write_packed(file, {"layer": pack(weight, Encoding("int8"), "dense")}, {})
    with safe_open(file, framework="pt", backend="mmap") as stored:
        values, scales = (stored.get_slice(f"layer.{part}")[...] for part in ("values", "scales"))
    nothing = torch.empty(2048, 0, dtype=torch.uint8)
    layer = PackedLinear(sparse_linear.Weight(nothing, values, scales, 2048, Encoding("int8"), "dense"))
    checksum = int(values.sum(dtype=torch.int64))
    before = resident_kilobytes(file)
    layer.prepare("layer")
    after = resident_kilobytes(file)
    if after == before:
        pytest.skip("this kernel does not take pages back (madvise MADV_PAGEOUT, Linux 5.4)")
    assert before >= 4096
    assert after < 0.1 * before
    assert int(values.sum(dtype=torch.int64)) == checksum


def resident_kilobytes(file: Path) -> int:
    """Memory that the mapping of a file takes in this process."""
    maps = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(maps) if line.endswith(str(file)))
    return int(next(line for line in maps[start:] if line.startswith("Rss:")).split()[1])


def test_damage_is_named(layer: PackedLinear) -> None:
    with torch.no_grad():
        layer.mask[0, 0] ^= 1
    with pytest.raises(ArtifactError, match=r"'blocks\.0\.fc1'"):
        layer.prepare("blocks.0.fc1")


def test_a_gradient_is_refused_but_a_forward_that_records_is_not(layer: PackedLinear, x: Tensor) -> None:
    y = layer(x.requires_grad_())
    with pytest.raises(RuntimeError, match="no gradient"):
        y.sum().backward()


def test_it_says_what_it_is(layer: PackedLinear) -> None:
    assert "in_features=70, out_features=12, bias=True, values='int8'" in repr(layer)
