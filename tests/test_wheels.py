"""The kernels' library in the wheel: where it runs, what it needs, and what happens where it cannot be built."""

import json
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from wheels import ARM, CSRC, KERNELS, NO_COMPILER, ROOT, build_wheel, copy_tree, install

LIBRARY, REASON = KERNELS
ONNXRUNTIMES_GLIBC = 28
"""Its wheels are tagged manylinux_2_28."""
X86 = ["amx", "avx512_bf16", "avx512", "avx2_vnni", "avx2", "portable"]
SHOW = """
import json
from slimdeploy.kernels.library import instruction_sets
print(json.dumps([(found.name, found.supported) for found in instruction_sets()]))
"""


def run_bare(programs: Path, program: str, *arguments: str) -> str:
    """What it prints on a machine with nothing on the PATH but the environment's own programs."""
    bare = {"PATH": str(programs), "HOME": str(programs.parent), "COLUMNS": "1000"}
    command = [programs / program, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=bare, cwd=programs.parent).stdout


def contents(wheel: Path, name: str) -> str:
    return zipfile.ZipFile(wheel).read(name).decode()


@pytest.mark.compiler
def test_a_machine_without_a_compiler_gets_the_fast_kernels_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    programs = install(wheel, tmp_path / "device")
    found = dict(json.loads(run_bare(programs, "python", "-c", SHOW)))
    assert found["portable"]
    fastest = next(name for name, supported in found.items() if supported)
    assert f"{fastest}, the fastest of" in run_bare(programs, "slimdeploy", "doctor")
    if platform.machine() == "x86_64":
        assert list(found) == X86
        flags = Path("/proc/cpuinfo").read_text().split()
        assert found["avx2"] == ("avx2" in flags)
        assert found["avx512"] == ("avx512_vbmi2" in flags and "avx512_vnni" in flags)


@pytest.mark.compiler
def test_one_wheel_serves_every_python_on_devices_where_onnxruntime_runs(wheel: Path, tmp_path: Path) -> None:
    machine = platform.machine()
    assert wheel.name.endswith(f"-py3-none-linux_{machine}.whl")
    assert oldest_glibc(wheel, tmp_path) <= ONNXRUNTIMES_GLIBC


@pytest.mark.cross
def test_the_wheel_for_64_bit_arm_is_built_on_any_machine(tmp_path: Path) -> None:
    arm = build_wheel(tmp_path, "--config-settings=--build-option=--plat-name=linux_aarch64", **ARM)
    assert zipfile.ZipFile(arm).read(LIBRARY)[18:20] == b"\xb7\x00"  # ELF e_machine: EM_AARCH64
    assert oldest_glibc(arm, tmp_path) <= ONNXRUNTIMES_GLIBC


def oldest_glibc(wheel: Path, folder: Path) -> int:
    """The 24 of glibc 2.24 in the tag that auditwheel gives the wheel."""
    command = [
        sys.executable,
        "-m",
        "auditwheel",
        "repair",
        "--patcher",
        "none",
        "--wheel-dir",
        folder / "tagged",
        wheel,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (built,) = (folder / "tagged").iterdir()
    return int(re.search(r"-manylinux_2_(\d+)_", built.name)[1])


def test_without_a_compiler_the_package_is_installed_and_says_why_it_is_slow(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, SLIMDEPLOY_REQUIRE_KERNELS="", **NO_COMPILER)
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
    shown = run_bare(install(wheel, tmp_path / "device"), "slimdeploy", "doctor")
    assert "missing" in shown
    assert "When slimdeploy was built: no C++ compiler" in shown


@pytest.mark.compiler
def test_a_build_that_fails_gives_its_last_lines_as_the_reason(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, SLIMDEPLOY_REQUIRE_KERNELS="", CMAKE_TOOLCHAIN_FILE=str(tmp_path / "no.cmake"))
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
    assert "no.cmake" in contents(wheel, REASON)


def test_whoever_requires_the_kernels_gets_an_error_instead(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"no C\+\+ compiler"):
        build_wheel(tmp_path, SLIMDEPLOY_REQUIRE_KERNELS="1", **NO_COMPILER)


@pytest.mark.compiler
def test_no_instruction_set_leaks_into_code_that_runs_on_every_machine(wheel: Path) -> None:
    """A function that the linker may take from any file would bring that file's instructions to older machines."""
    folder = ROOT / "build" / f"kernels-{platform.machine()}" / "CMakeFiles" / "slimdeploy_kernels.dir"
    objects = [file for file in folder.glob("*.o") if file.name.startswith(("avx", "amx", "neon"))]
    assert objects
    for file in objects:
        symbols = subprocess.run(["nm", "-C", file], capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line for line in symbols if line[17:18] == "W"] == [], file.name


def test_the_source_distribution_holds_the_sources_of_the_kernels(tmp_path: Path) -> None:
    source = copy_tree(tmp_path / "source")
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {f"slimdeploy/kernels/csrc/{file.name}" for file in CSRC.iterdir()} <= names
    assert "setup.py" in names
    assert not names & set(KERNELS)
