"""What `slimdeploy doctor` finds, on installations that are whole, partial and broken."""

from importlib.metadata import PackageNotFoundError

from slimdeploy.doctor import EXTRAS, Finding, Lookup, examine


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
    assert not any(finding.problem for finding in findings)


def test_two_onnxruntimes_are_a_problem_with_its_remedy() -> None:
    found = finding(examine(having("onnxruntime", "onnxruntime-gpu")), "onnxruntime")
    assert "pip uninstall" in found.problem
    assert "slimdeploy[edge-gpu]" in found.problem
