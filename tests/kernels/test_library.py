"""The library is called as its header says, and what belongs to it is not copied."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from slimdeploy.errors import ConfigError
from slimdeploy.kernels import library
from slimdeploy.kernels.library import LayoutChoice, Linear, layout_choice, library_file, require_library
from slimdeploy.kernels.reference import linear
from slimdeploy.packed import Encoding, PackedTensor, pack
from slimdeploy.packed_tensor import ALL_KEPT
from slimdeploy.quantize import LARGEST_SCALE

if library_file() is None:
    pytest.skip("the kernels are not built: apt-get install g++ cmake, make install", allow_module_level=True)

HEADER = Path(library.__file__).with_name("csrc") / "slimdeploy_kernels.h"
INT8 = Encoding("int8", 128)


def test_every_function_of_the_header_is_declared_with_its_arguments() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    functions = dict(re.findall(r"SLIMDEPLOY_API [^;(]*?(slimdeploy_\w+)\(([^)]*)\);", text))
    assert len(functions) == text.count("SLIMDEPLOY_API ") - 1, "its definition is one more"
    declared = {name: function.argtypes for name, function in vars(require_library()).items() if "slimdeploy" in name}
    assert {name: len(types) for name, types in declared.items()} == {
        name: 0 if arguments == "void" else len(arguments.split(",")) for name, arguments in functions.items()
    }


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_linear_is_not_copied(duplicate: Callable[[object], object]) -> None:
    one = Linear(eye(INT8))
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        duplicate(one)
    assert one(np.ones((1, 70), np.float32)).shape == (1, 8)


@pytest.mark.parametrize("encoding", [Encoding("int4", 128), Encoding("int4", 32), INT8, Encoding("bf16")], ids=str)
def test_a_layout_is_chosen_by_what_was_measured(encoding: Encoding) -> None:
    choice = layout_choice(encoding, 0.5)
    assert choice.sparse_ns > 0
    assert choice.dense_ns > 0
    assert choice.layout == "sparse" or choice.dense_ns < choice.sparse_ns
    assert layout_choice(encoding, 0.5) == choice, "it is measured once"


def test_groups_of_int4_are_measured_each_by_itself() -> None:
    assert layout_choice(Encoding("int4", 32), 0.5) != layout_choice(Encoding("int4", 128), 0.5)


def test_a_share_that_is_none_and_an_unknown_instruction_set_are_refused() -> None:
    with pytest.raises(ConfigError, match="share"):
        layout_choice(INT8, 1.5)
    with pytest.raises(ConfigError, match="abacus"):
        layout_choice(INT8, 0.5, "abacus")


def test_a_choice_says_the_speed_of_what_was_taken_first() -> None:
    assert str(LayoutChoice("sparse", 18.2, 24.9)) == "held sparse in memory (18 ns per 1000 weights; dense 25)"
    assert str(LayoutChoice("dense", 18.2, 9.9)) == "held dense in memory (10 ns per 1000 weights; sparse 18)"


@pytest.mark.parametrize("encoding", [INT8, Encoding("int8"), Encoding("int4", 128), Encoding("int4", 32)], ids=str)
@pytest.mark.parametrize("bits", [0x0D80, 0x6780])
def test_the_smallest_and_the_largest_scales_are_multiplied_exactly(encoding: Encoding, bits: int) -> None:
    packed = eye(encoding)
    packed.scales[:] = bits
    x = activations()
    for name in (each.name for each in library.instruction_sets() if each.supported):
        for batch in (1, 8, 20):
            y = Linear(packed, instruction_set=name)(x[:batch]).astype(np.float64)
            exact = linear(packed, x[:batch])
            assert np.linalg.norm(y - exact) < 1e-5 * np.linalg.norm(exact), f"{name}, batch {batch}"


def test_the_sum_of_a_wide_row_of_the_largest_weights_is_a_number() -> None:
    weight = np.full((3, 20_000), 127 * LARGEST_SCALE, np.float32)
    packed = pack(weight, Encoding("int8"), ALL_KEPT)
    assert (packed.values == 127).all()
    x = np.ones((20, 20_000), np.float32)
    for name in (each.name for each in library.instruction_sets() if each.supported):
        for batch in (1, 8, 20):
            np.testing.assert_allclose(
                Linear(packed, instruction_set=name)(x[:batch]), linear(packed, x[:batch]), rtol=1e-5, err_msg=name
            )


def test_a_linear_knows_how_many_weights_it_keeps() -> None:
    assert Linear(eye(INT8)).kept == 8


def eye(encoding: Encoding) -> PackedTensor:
    return pack(np.eye(8, 70, dtype=np.float32), encoding, "unstructured")


def activations() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((20, 70)).astype(np.float32)
