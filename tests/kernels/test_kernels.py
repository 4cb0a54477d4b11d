"""The installed library equals the float64 reference: every instruction set of this CPU, both layouts, threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import packed_weights
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import AMX_BF16_TOLERANCE, MANY_ROWS, TOLERANCE, Case, cases, inputs
from numpy.typing import NDArray
from packed_weights import ENCODINGS, PATTERNS, label

from slimdeploy.errors import ArtifactError
from slimdeploy.kernels import reference
from slimdeploy.kernels.library import FORCED, Layout, Linear, instruction_sets, library_file
from slimdeploy.packed import Encoding, PackedTensor

if library_file() is None:
    pytest.skip("the kernels are not built: apt-get install g++ cmake, make install", allow_module_level=True)

SETS = [each.name for each in instruction_sets() if each.supported]
LAYOUTS: tuple[Layout, ...] = ("sparse", "dense")

encodings = pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
sets = pytest.mark.parametrize("name", SETS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def random_packed(seed: int, encoding: Encoding, pattern: str, rows: int, columns: int) -> PackedTensor:
    return packed_weights.random_packed(np.random.default_rng(seed), encoding, pattern, rows, columns)


def activations(seed: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def relative_error(y: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """||y - exact|| / ||exact|| over what is finite; infinite where the two differ in what is not."""
    finite = np.isfinite(exact)
    if (np.isfinite(y) != finite).any():
        return float("inf")
    # Rows of zeros are rounded with a scale of 1e-30 / 127, of which next to nothing may be left.
    return float(np.linalg.norm(y[finite] - exact[finite]) / max(float(np.linalg.norm(exact[finite])), 1e-25))


def tolerance(name: str, encoding: Encoding) -> float:
    return AMX_BF16_TOLERANCE if name == "amx" and encoding.values == "bf16" else TOLERANCE


@pytest.fixture(scope="module")
def all_cases() -> list[Case]:
    return [case for _, case in cases(inputs())]


@layouts
@sets
def test_every_case_equals_float64(all_cases: list[Case], name: str, layout: Layout) -> None:
    wrong = []
    for case in all_cases:
        linear = Linear(case.packed, instruction_set=name, layout=layout)
        for batch in (n for n in case.batches if n < 64):
            y = linear(case.x[:batch], threads=1 + batch % 2)
            error = relative_error(y, case.y[:batch])
            if not error < tolerance(name, case.packed.encoding):
                wrong.append(f"{case}, batch {batch}: {error:.1e}")
    assert not wrong


@pytest.mark.parametrize(
    ("encoding", "pattern"),
    [(Encoding("int4", 128), "unstructured"), (Encoding("int8", 128), "26:64"), (Encoding("bf16"), "dense")],
)
def test_large_matrices_equal_float64(encoding: Encoding, pattern: str) -> None:
    packed, x = random_packed(1, encoding, pattern, MANY_ROWS, 4100), activations(2, 577, 4100)
    exact = reference.linear(packed, x)
    for name in SETS:
        linear = Linear(packed, instruction_set=name)
        for batch in (1, 8, 17) if name == "portable" else (1, 8, 17, 577):
            error = relative_error(linear(x[:batch], threads=2), exact[:batch])
            assert error < tolerance(name, encoding), f"{name}, batch {batch}: {error:.1e}"


@settings(max_examples=60)
@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(PATTERNS),
    st.sampled_from(SETS),
    st.sampled_from(LAYOUTS),
    st.integers(1, 40),
    st.integers(1, 700),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_a_batch_equals_its_rows(
    encoding: Encoding, pattern: str, name: str, layout: Layout, rows: int, columns: int, batch: int, seed: int
) -> None:
    packed, x = random_packed(seed, encoding, pattern, rows, columns), activations(seed, batch, columns)
    linear = Linear(packed, instruction_set=name, layout=layout)
    together, alone = linear(x), np.concatenate([linear(row[None]) for row in x])
    # Single results may cancel: what is compared is the size of the terms.
    terms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(
        np.asarray(reference.linear(packed, np.eye(columns, dtype=np.float32))), axis=0
    )
    assert (np.abs(together - alone) <= tolerance(name, encoding) * terms + 1e-25).all()


@settings(max_examples=60)
@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(SETS),
    st.sampled_from((1, 3, 8, 20)),
    st.integers(-20, 20),
    st.integers(0, 2**32 - 1),
)
def test_twice_the_input_gives_exactly_twice_the_output(
    encoding: Encoding, name: str, batch: int, power: int, seed: int
) -> None:
    linear = Linear(random_packed(seed, encoding, "unstructured", 9, 300), instruction_set=name)
    x = activations(seed, batch, 300)
    np.testing.assert_array_equal(linear(x * np.float32(2.0**power)), linear(x) * np.float32(2.0**power))


@sets
@encodings
def test_threads_change_nothing(encoding: Encoding, name: str) -> None:
    # Enough weights for several threads to be worth waking, at one row too.
    packed = random_packed(3, encoding, "unstructured", 1031, 1040)
    linear = Linear(packed, instruction_set=name)
    for batch in (1, 5, 33):
        x = activations(4, batch, 1040)
        alone = linear(x)
        for threads in (2, 3, 8, 200):
            np.testing.assert_allclose(linear(x, threads), alone, rtol=0, atol=1e-6 * np.abs(alone).max())


@sets
@encodings
def test_arrays_may_start_at_any_float_and_nothing_else_is_written(encoding: Encoding, name: str) -> None:
    packed = random_packed(5, encoding, "unstructured", 35, 130)
    linear = Linear(packed, instruction_set=name)
    for batch in (1, 3, 19):
        x = activations(6, batch, 130)
        shifted, y = np.full(batch * 130 + 8, np.nan, np.float32), np.full(batch * 35 + 16, 7, np.float32)
        shifted[3 : 3 + x.size] = x.ravel()
        linear.run(shifted[3:].ctypes.data, batch, y[5:].ctypes.data, 1)
        np.testing.assert_array_equal(y[5 : 5 + batch * 35].reshape(batch, 35), linear(x))
        assert (y[:5] == 7).all()
        assert (y[5 + batch * 35 :] == 7).all()


def test_no_rows_of_input_give_no_rows_of_output() -> None:
    linear = Linear(random_packed(7, Encoding("int8"), "unstructured", 5, 70))
    assert linear(np.empty((0, 70), np.float32)).shape == (0, 5)


def test_several_python_threads_share_the_pool() -> None:
    packed = random_packed(8, Encoding("int8", 128), "unstructured", 900, 900)
    linear, inputs = Linear(packed), [activations(seed, 1 + seed % 20, 900) for seed in range(64)]
    expected = [linear(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            found = list(pool.map(lambda x: linear(x, threads=3), inputs))
            for y, exact in zip(found, expected, strict=True):
                np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


FORKING = """
import os, sys
import numpy as np
from slimdeploy.kernels.library import Linear
from slimdeploy.packed import Encoding, pack
weight = np.random.default_rng(1).standard_normal((300, 500)).astype(np.float32)
linear = Linear(pack(weight, Encoding("int8", 128), "dense"))
x = np.random.default_rng(2).standard_normal((20, 500)).astype(np.float32)
expected = linear(x, threads=2)
child = os.fork()
assert np.array_equal(linear(x, threads=2), expected)
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=60)


def test_the_fastest_instruction_set_is_taken_unless_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_packed(9, Encoding("int4", 128), "unstructured", 5, 70)
    monkeypatch.delenv(FORCED, raising=False)
    assert Linear(packed).instruction_set == SETS[0]
    monkeypatch.setenv(FORCED, "portable")
    assert Linear(packed).instruction_set == "portable"
    assert Linear(packed, instruction_set=SETS[0]).instruction_set == SETS[0]
    monkeypatch.setenv(FORCED, "abacus")
    with pytest.raises(ArtifactError, match="abacus"):
        Linear(packed)


def test_an_instruction_set_that_this_cpu_lacks_is_refused() -> None:
    packed = random_packed(9, Encoding("int8"), "unstructured", 5, 70)
    for each in instruction_sets():
        if not each.supported:
            with pytest.raises(ArtifactError, match=each.name):
                Linear(packed, instruction_set=each.name)


@layouts
def test_a_weight_says_its_shape_layout_and_size(layout: Layout) -> None:
    packed = random_packed(10, Encoding("int8", 128), "32:64", 64, 1024)
    linear = Linear(packed, layout=layout)
    assert (linear.rows, linear.columns, linear.layout) == (64, 1024, layout)
    scales, mask, kept = 64 * 8 * 2, 64 * 128, packed.kept
    assert linear.bytes == (scales + mask + kept if layout == "sparse" else scales + 64 * 1024)


def test_a_tensor_that_is_not_what_it_says_is_refused() -> None:
    packed = random_packed(11, Encoding("int8", 128), "unstructured", 5, 70)
    packed.scales[2, 0] = 0x7FC0
    with pytest.raises(ArtifactError, match=r"5 x 70.*scale"):
        Linear(packed)
