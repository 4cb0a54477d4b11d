"""optimum's command line exports as ours does, and its name is not taken for optimum itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import configure, make_source
from wheels import install

from slimdeploy.artifact import open_artifact
from slimdeploy.cli import main
from slimdeploy.config_file import render_config

OPTIMUM_CLI = "from optimum.commands.optimum_cli import main; main()"


def optimum_cli(*arguments: object, python: object = sys.executable) -> "subprocess.CompletedProcess[str]":
    # Not in the tree's folder, which would be searched for modules first.
    command = [str(python), "-c", OPTIMUM_CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_optimum_lists_our_export_and_its_arguments() -> None:
    assert "slimdeploy" in optimum_cli("export", "--help").stdout
    shown = optimum_cli("export", "slimdeploy", "--help").stdout
    assert "--to {onnx,vllm,checkpoint}" in shown
    assert "--output DIR" in shown


def test_the_wheel_registers_it_as_well(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, tmp_path / "environment") / "python"
    found = optimum_cli("export", "slimdeploy", tmp_path / "none.toml", python=python)
    assert found.returncode == 2
    assert "slimdeploy init" in found.stderr


def test_what_optimum_exports_opens(tmp_path: Path) -> None:
    config = configure(make_source(tmp_path), tmp_path / "run", sparsity=0)
    (tmp_path / "deploy.toml").write_text(render_config(config))
    exported = optimum_cli(
        "export", "slimdeploy", tmp_path / "deploy.toml", "--to", "checkpoint", "--output", tmp_path / "exported"
    )
    assert exported.returncode == 0, exported.stderr
    assert open_artifact(tmp_path / "exported").manifest.format == "checkpoint"


def test_optimum_refuses_with_our_sentence_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deploy.toml").write_text("[search]\ngenerationz = 3\n")
    assert main(["export", str(tmp_path / "deploy.toml")]) == 2
    refused = optimum_cli("export", "slimdeploy", tmp_path / "deploy.toml")
    assert refused.returncode == 2
    assert refused.stderr == capsys.readouterr().err


def test_what_optimum_reads_at_its_start_is_light() -> None:
    script = (
        "import sys, optimum.commands.register.slimdeploy; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert found.stdout.strip() == "set()", found.stderr
