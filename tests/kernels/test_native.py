"""Kernels in a program of their own, which can do what a test in Python cannot: run under sanitizers and on an emulated
64-bit Arm, and give the C interface memory that ends where it says. native/ holds that program.

AMX runs there against an emulation of its instructions, AVX-VNNI in the encoding of AVX-512.
"""

import os
import subprocess
from pathlib import Path

import pytest
from kernel_cases import write_vectors
from made_once import MakeOnce

KERNELS = Path(__file__).parents[2] / "slimdeploy" / "kernels" / "csrc"
X86_SETS = ("amx", "avx512_bf16", "avx512", "avx2_vnni", "avx2", "portable")
QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")


@pytest.fixture(scope="session")
def vectors(make_once: MakeOnce) -> Path:
    def write(folder: Path) -> Path:
        write_vectors(folder / "vectors")
        return folder / "vectors"

    return make_once("vectors", write)


def build(folder: Path, *options: str) -> Path:
    """The driver, built with these options of CMake."""
    run(
        "cmake",
        "-S",
        str(KERNELS),
        "-B",
        str(folder),
        "-DSLIMDEPLOY_BUILD_TESTS=ON",
        "-DSLIMDEPLOY_WERROR=ON",
        *options,
    )
    run("cmake", "--build", str(folder), "--target", "kernel_vectors", "--parallel", str(os.cpu_count() or 1))
    return folder / "native" / "kernel_vectors"


def run(*command: str | Path) -> str:
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, f"{command[0]}:\n{result.stdout[-4000:]}"
    return result.stdout


def run_vectors(*command: str | Path) -> None:
    if "not on this CPU" in (output := run(*command)):
        pytest.skip(output.splitlines()[0])


@pytest.fixture(scope="session")
def plain(make_once: MakeOnce) -> Path:
    return make_once("plain_driver", lambda folder: build(folder))


@pytest.fixture(scope="session")
def sanitized(make_once: MakeOnce) -> Path:
    return make_once("sanitized_driver", lambda folder: build(folder, "-DSLIMDEPLOY_SANITIZE=address,undefined"))


@pytest.fixture(scope="session")
def arm(make_once: MakeOnce) -> Path:
    return make_once("arm_driver", lambda folder: build(folder, f"-DCMAKE_TOOLCHAIN_FILE={KERNELS / 'aarch64.cmake'}"))


@pytest.mark.compiler
@pytest.mark.parametrize("name", X86_SETS)
def test_every_case_equals_float64(plain: Path, vectors: Path, name: str) -> None:
    run_vectors(plain, vectors, "577", name)


@pytest.mark.compiler
@pytest.mark.parametrize("name", X86_SETS)
def test_no_case_touches_memory_that_is_not_its_own(sanitized: Path, vectors: Path, name: str) -> None:
    run_vectors(sanitized, vectors, "17", name)


@pytest.mark.compiler
@pytest.mark.parametrize("name", X86_SETS)
def test_attention_equals_float64_and_touches_no_memory_of_others(sanitized: Path, name: str) -> None:
    if "not on this CPU" in (output := run(sanitized, "--attention", name)):
        pytest.skip(output)
    assert output == "attention: 0 failures\n"


@pytest.mark.compiler
def test_hostile_weights_are_refused_with_a_sentence(sanitized: Path) -> None:
    assert run(sanitized, "--hostile") == "hostile input: 0 failures\n"


@pytest.mark.compiler
def test_pages_of_a_file_are_given_back_unless_they_were_written_to(sanitized: Path, tmp_path: Path) -> None:
    file = tmp_path / "ones"
    file.write_bytes(b"\x01" * (64 * os.sysconf("SC_PAGESIZE")))
    if (output := run(sanitized, "--given-back", file)).startswith("the system does not tell"):
        pytest.skip(output)
    assert output == "pages given back: 0 failures\n"


@pytest.mark.cross
@pytest.mark.parametrize(("name", "batch"), [("neon", "17"), ("portable", "4")])
def test_every_case_equals_float64_on_arm(arm: Path, vectors: Path, name: str, batch: str) -> None:
    run_vectors(*QEMU, arm, vectors, batch, name)


@pytest.mark.cross
def test_attention_equals_float64_on_arm(arm: Path) -> None:
    assert run(*QEMU, arm, "--attention") == "attention: 0 failures\n"


@pytest.mark.cross
def test_hostile_weights_are_refused_on_arm(arm: Path) -> None:
    assert run(*QEMU, arm, "--hostile") == "hostile input: 0 failures\n"
