"""The wheel holds all there is, and what the edge extra installs is enough to serve."""

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from artifacts import new_artifact
from tiny import make_samples, make_tiny_llava
from wheels import INSTALLED_AS, KERNELS, ROOT, pip

from slimdeploy.artifact import Manifest
from slimdeploy.config import ExportConfig
from slimdeploy.progress import Progress


def test_the_wheel_holds_the_tree_and_the_kernels_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("slimdeploy-")}
    expected = {
        f"{installed}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in INSTALLED_AS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not {"__pycache__", "csrc"} & set(file.parts)
    }
    assert packed - set(KERNELS) == expected - set(KERNELS)
    assert len(packed & set(KERNELS)) == 1


def test_nothing_of_the_edge_imports_torch() -> None:
    modules = (
        "slimdeploy, slimdeploy.cli, slimdeploy.validation, slimdeploy.pipeline, slimdeploy.tables, slimdeploy.data, "
        "slimdeploy.demo, slimdeploy.report_html, slimdeploy.serve.server, slimdeploy.serve.runtime, "
        "slimdeploy.serve.engines.onnx, slimdeploy.serve.bench"
    )
    heavy = "{'torch', 'transformers', 'onnx', 'safetensors', 'sklearn', 'scipy'}"
    script = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert result.stdout.strip() == "[]", result.stderr


LARGEST_EDGE = 250_000_000
"""Bytes of all that the edge extra installs."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from slimdeploy.exporters import ExportJob, export
    from slimdeploy.model import load_model

    path = tmp_path_factory.mktemp("artifact")
    with new_artifact(path / "artifact", Manifest("onnx", "tiny", "llava")) as folder:
        model = load_model(str(make_tiny_llava(path / "model")))
        export(model, folder, ExportJob(ExportConfig(verify_prompts=2), make_samples(2)), Progress.silent())
    return path / "artifact"


@pytest.mark.network
def test_the_edge_extra_alone_serves_and_is_small(wheel: Path, artifact: Path, tmp_path: Path) -> None:
    device = Device(wheel, "edge", tmp_path / "edge")
    assert not device.packages & {"torch", "transformers", "onnx", "sklearn", "safetensors"}
    assert device.bytes <= LARGEST_EDGE
    shown = device.run("--help")
    assert shown.returncode == 0
    assert "serve" in shown.stdout
    assert device.run("ask", artifact, "--max-tokens", "4", "What is it?").returncode == 0

    with device.serving(artifact) as (url, process):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 1
        maps = Path(f"/proc/{process}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()


@pytest.mark.network
def test_the_edge_gpu_extra_serves_on_the_cpu_where_cuda_does_not_work(
    wheel: Path, artifact: Path, tmp_path: Path
) -> None:
    device = Device(wheel, "edge-gpu", tmp_path / "edge-gpu")
    with device.serving(artifact) as (url, _):
        assert httpx.get(f"{url}/health").status_code == 200
    doctor = device.run("doctor").stdout
    assert "CUDAExecutionProvider" in doctor
    assert "runs artifacts on the CPU: CUDA does not work here" in doctor
    (tmp_path / "deploy.toml").write_text('[serve]\nport = 0\n[serve.onnx]\nprovider = "cuda"\n')
    refused = device.run("serve", artifact, "--config", tmp_path / "deploy.toml")
    assert refused.returncode == 2
    assert "serve.onnx.provider = 'cuda', but CUDA does not work here" in refused.stderr


class Device:
    """A machine without a compiler, a GPU and the source tree, with one extra of the wheel installed."""

    def __init__(self, wheel: Path, extra: str, folder: Path) -> None:
        venv.create(folder)
        # Python compiles the modules that it imports, a small part of all that is installed.
        constraint = ("--no-compile", "--constraint", ROOT / "constraints.txt")
        pip("--python", folder, "install", "--quiet", *constraint, f"{wheel}[{extra}]")
        (installed,) = folder.glob("lib/python*/site-packages")
        self.packages = {path.name for path in installed.iterdir()}
        self.bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        self._command = folder / "bin" / "slimdeploy"
        environment = {"PATH": str(self._command.parent), "HOME": str(folder.parent), "COLUMNS": "400"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._bare = {"env": environment, "cwd": folder.parent, "text": True}

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([self._command, *map(str, arguments)], capture_output=True, **self._bare)

    @contextmanager
    def serving(self, artifact: Path) -> Iterator[tuple[str, int]]:
        """The server's URL and process."""
        command = [self._command, "serve", artifact, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, **self._bare)
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1], server.pid
        finally:
            server.terminate()
            server.wait(timeout=30)
            assert server.stdout is not None
            server.stdout.close()
