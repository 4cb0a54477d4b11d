"""What `slimdeploy doctor` finds, on installations that are whole, partial and broken."""

import importlib
import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from slimdeploy import doctor
from slimdeploy.doctor import EXTRAS, Finding, Lookup, cpu_features, cpu_name, examine, extra_with, kernels
from slimdeploy.kernels import operators
from slimdeploy.kernels.library import FORCED, instruction_sets, library_file


def having(*packages: str) -> Lookup:
    def lookup(package: str) -> str:
        if package not in packages:
            raise PackageNotFoundError(package)
        return "1.2.3"

    return lookup


def finding(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_an_extra_is_there_when_all_its_packages_are() -> None:
    findings = examine(having(*EXTRAS["edge"]))
    assert "onnxruntime 1.2.3" in finding(findings, "extra edge").value
    assert "missing torch" in finding(findings, "extra compress").value
    # Kernels are no package: without a compiler they are a problem of their own.
    assert not any(finding.problem for finding in findings if finding.name != "kernels")


def test_optimums_namespace_alone_is_not_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.import_module("optimum.commands.register")  # found by its folder; versions come from metadata
    assert "optimum" in finding(examine(having(*set(EXTRAS["compress"]) - {"optimum"})), "extra compress").value
    monkeypatch.setattr(doctor, "installed_versions", lambda _: {})
    assert extra_with("optimum.utils") == "compress"
    monkeypatch.setattr(doctor, "installed_versions", lambda _: {"optimum": "1.2.3"})
    assert extra_with("optimum.utils") is None


def test_two_onnxruntimes_are_a_problem_with_its_remedy() -> None:
    found = finding(examine(having("onnxruntime", "onnxruntime-gpu")), "onnxruntime")
    assert "pip uninstall" in found.problem
    assert "slimdeploy[edge-gpu]" in found.problem


def test_what_onnxruntime_offers_is_told_and_what_auto_makes_of_it() -> None:
    found = finding(examine(having("onnxruntime")), "onnxruntime")
    assert "CPUExecutionProvider" in found.value
    assert "'auto' runs artifacts on the CPU: this onnxruntime was built without CUDA" in found.value
    assert all(finding.name != "onnxruntime" for finding in examine(having()))


def test_a_missing_library_is_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "missing_operators", lambda: "the kernels are not installed; install g++")
    [found] = kernels()
    assert found.value == "missing"
    assert "install g++" in found.problem


@pytest.mark.parametrize(
    ("lines", "features"),
    [
        ("model name\t: A CPU\nflags\t\t: fpu avx512_bf16 avx2 avx512f_like\n", ["avx2", "avx512_bf16"]),
        ("flags : popcnt bmi2 avx512vbmi avx512_vbmi2 gfni\n", ["popcnt", "bmi2", "avx512vbmi", "avx512_vbmi2"]),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n", ["asimd", "asimddp"]),
        ("", []),
    ],
)
def test_features_that_kernels_use_are_told(
    lines: str, features: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(doctor, "Path", lambda *_: tmp_path / "cpuinfo")
    assert cpu_features() == features
    assert cpu_name() == ("A CPU" if "A CPU" in lines else platform.processor() or platform.machine())


needs_kernels = pytest.mark.skipif(library_file() is None, reason="the kernels were not built")


@needs_kernels
def test_the_kernels_in_use_and_how_weights_are_kept_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    findings = kernels()
    supported = [each.name for each in instruction_sets() if each.supported]
    assert finding(findings, "kernels").value.startswith(supported[0])
    assert {found.name for found in findings} >= {"packed int4", "packed int8", "packed bf16"}
    assert "ns per 1000 weights" in finding(findings, "packed int4").value


@needs_kernels
def test_kernels_that_the_environment_names_are_told_and_those_that_are_none_are_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FORCED, "portable")
    assert finding(kernels(), "kernels").value.startswith(f"portable, as {FORCED} says")
    monkeypatch.setenv(FORCED, "abacus")
    [found] = kernels()
    assert found.problem.startswith(f"{FORCED} = 'abacus'")
    assert "portable" in found.problem
