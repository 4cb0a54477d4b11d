"""A benchmark is run as a script, beside whose files it finds its modules."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONAL_PEERS = (
    "SLIMDEPLOY_BENCH_LLMCOMPRESSOR",
    "SLIMDEPLOY_BENCH_LLAMACPP",
    "SLIMDEPLOY_BENCH_OPENVINO",
    "SLIMDEPLOY_BENCH_VLLM",
)
"""Variables that name what a benchmark is compared with where it is there."""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def quick_run() -> Callable[[str, str], Any]:
    """Runs a benchmark with --quick, by its file, and holds that its result of a name is left alone."""

    def run(script: str, result: str) -> Any:
        file = BENCHMARKS / "results" / f"{result}.json"
        before = file.stat().st_mtime_ns if file.exists() else None
        environment = {name: value for name, value in os.environ.items() if name not in OPTIONAL_PEERS}
        command = [sys.executable, BENCHMARKS / script, "--quick", "--json"]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        assert (file.stat().st_mtime_ns if file.exists() else None) == before
        return json.loads(output)

    return run
