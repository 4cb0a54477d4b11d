"""What `slimdeploy doctor` finds, on installations that are whole, partial and broken."""

from importlib.metadata import PackageNotFoundError

import pytest

from slimdeploy.doctor import EXTRAS, Finding, Lookup, examine, kernels
from slimdeploy.kernels.library import instruction_sets, library_file


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


def test_two_onnxruntimes_are_a_problem_with_its_remedy() -> None:
    found = finding(examine(having("onnxruntime", "onnxruntime-gpu")), "onnxruntime")
    assert "pip uninstall" in found.problem
    assert "slimdeploy[edge-gpu]" in found.problem


def test_a_missing_library_is_a_problem_with_its_remedy() -> None:
    [found] = kernels(None)
    assert found.value == "not built"
    assert "install g++" in found.problem


@pytest.mark.skipif(library_file() is None, reason="the kernels were not built")
def test_the_kernels_in_use_and_how_weights_are_kept_are_told() -> None:
    findings = kernels(library_file())
    supported = [each.name for each in instruction_sets() if each.supported]
    assert finding(findings, "kernels").value.startswith(supported[0])
    assert {found.name for found in findings} >= {"packed int4", "packed int8", "packed bf16"}
    assert "ns per 1000 weights" in finding(findings, "packed int4").value
