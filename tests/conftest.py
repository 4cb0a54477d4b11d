"""The rule for tests that need more than Python: skipped by default, demanded by `--everything`."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch, numpy or onnxruntime start their threads: two cores shared by threads of three libraries are slower
# than one thread each, and results that depend on the number of threads would differ between machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

if TYPE_CHECKING:
    from slimdeploy.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything",
        action="store_true",
        help="also run tests that need Chromium or the package index; a skipped test is then a failure",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = config.getoption("--everything")
    for item in items:
        if item.get_closest_marker("network") and not everything:
            item.add_marker(pytest.mark.skip(reason="installs packages; run with --everything"))
        if item.get_closest_marker("chromium") and shutil.which("chromium") is None:
            item.add_marker(pytest.mark.skip(reason="needs Chromium: apt-get install chromium"))


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


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> "Model":
    """A fresh one for every test, which may prune it."""
    from slimdeploy.model import load_model

    return load_model(str(tiny_checkpoint))
