"""The wheel holds all there is, and what the edge extra installs is enough to serve."""

import subprocess
import sys
import venv
import zipfile
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


@pytest.mark.network
def test_the_edge_extra_alone_serves(wheel: Path, tmp_path: Path) -> None:
    from slimdeploy.exporters import ExportJob, export
    from slimdeploy.model import load_model

    with new_artifact(tmp_path / "artifact", Manifest("onnx", "tiny", "llava")) as folder:
        model = load_model(str(make_tiny_llava(tmp_path / "model")))
        export(model, folder, ExportJob(ExportConfig(verify_prompts=2), make_samples(2)), Progress.silent())

    venv.create(tmp_path / "edge")
    # Python compiles the modules that it imports, a small part of all that is installed.
    constraint = ("--no-compile", "--constraint", ROOT / "constraints.txt")
    pip("--python", tmp_path / "edge", "install", "--quiet", *constraint, f"{wheel}[edge]")
    installed = {path.name for path in (tmp_path / "edge").glob("lib/python*/site-packages/*")}
    assert not installed & {"torch", "transformers", "onnx", "sklearn", "safetensors"}

    command = tmp_path / "edge" / "bin" / "slimdeploy"
    # A machine without a compiler and without the source tree.
    bare = {"PATH": str(command.parent), "HOME": str(tmp_path)}
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert shown.returncode == 0
    assert "serve" in shown.stdout
    ask = [command, "ask", tmp_path / "artifact", "--max-tokens", "4", "What is it?"]
    assert subprocess.run(ask, capture_output=True, env=bare, cwd=tmp_path).returncode == 0

    serve = [command, "serve", tmp_path / "artifact", "--port", "0"]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=bare | {"COLUMNS": "200"}, cwd=tmp_path)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 1
        maps = Path(f"/proc/{server.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
    finally:
        server.terminate()
        server.wait(timeout=30)
        assert server.stdout is not None
        server.stdout.close()
