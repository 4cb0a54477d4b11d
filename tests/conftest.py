"""The rule for tests that need more than Python: skipped by default, demanded by `--everything`."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch, numpy or onnxruntime start their threads: two cores shared by threads of three libraries are slower
# than one thread each, and results that depend on the number of threads would differ between machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes tells of what else the cores are doing.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")

if TYPE_CHECKING:
    from made_once import MakeOnce
    from traced_once import Traces

    from slimdeploy.model import Model

# What the tests with a marker run, and the Debian packages that hold it.
PROGRAMS = {
    "chromium": (["chromium"], "chromium"),
    "node": (["node", "npm"], "nodejs npm"),
    "compiler": (["c++", "cmake"], "g++ cmake"),
    "cross": (
        ["aarch64-linux-gnu-g++", "qemu-aarch64-static", "cmake"],
        "g++-aarch64-linux-gnu qemu-user-static cmake",
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything",
        action="store_true",
        help="also run tests that need the package index; a skipped test is then a failure",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = config.getoption("--everything")
    for item in items:
        if item.get_closest_marker("network") and not everything:
            item.add_marker(pytest.mark.skip(reason="installs packages; run with --everything"))
        for marker, (programs, packages) in PROGRAMS.items():
            if item.get_closest_marker(marker) and not all(map(shutil.which, programs)):
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(programs)}: apt-get install {packages}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    report = yield
    if report.skipped and item.config.getoption("--everything") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --everything does not allow: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_tiny_llava

    return make_tiny_llava(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> "MakeOnce":
    """Makes a thing for all of pytest-xdist's workers, whose own folders lie beside each other."""
    from made_once import made_once

    own = tmp_path_factory.getbasetemp()
    return partial(made_once, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def wheel(make_once: "MakeOnce") -> Path:
    """For this machine; without the kernels' library where there is no C++ compiler."""
    from wheels import build_wheel

    built: Path = make_once("wheel", build_wheel)
    return built


@pytest.fixture(scope="session")
def traces() -> "Traces":
    return {}


@pytest.fixture(scope="module")
def traced_once(traces: "Traces") -> Iterator[None]:
    """For modules that export a model of one shape again and again; test_export_onnx.py traces it every time."""
    from traced_once import trace_once

    from slimdeploy.exporters import onnx

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "trace", partial(trace_once, traces, onnx.trace))
        yield


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> "Model":
    """A fresh one for every test, which may prune it."""
    from slimdeploy.model import load_model

    return load_model(str(tiny_checkpoint))
