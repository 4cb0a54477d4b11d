"""The command line: what it exits with, and one clear sentence for whatever a user can mend."""

import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from artifacts import new_artifact

from slimdeploy import __version__
from slimdeploy.artifact import MANIFEST, Manifest
from slimdeploy.cli import _serve_config, build_parser, main
from slimdeploy.config import ExportFormat
from slimdeploy.config_file import render_config
from slimdeploy.kernels.library import library_file


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence that a command is refused with."""
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert len(output.err.strip().splitlines()) == 1
    return output.err


def test_init_writes_the_documented_example_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deploy.toml"
    assert main(["init", str(file)]) == 0
    assert file.read_text() == render_config()
    file.write_text("# mine")
    assert "exists already" in refused(capsys, "init", file)
    assert file.read_text() == "# mine"


def test_every_format_can_be_exported_to() -> None:
    for name in get_args(ExportFormat):
        assert build_parser().parse_args(["export", "--to", name]).to == name


@pytest.mark.parametrize("named", ["", "artifact"])
def test_an_artifact_is_served_as_its_run_says_and_flags_win(named: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "artifact").mkdir(parents=True)
    (tmp_path / "run" / "artifact" / MANIFEST).touch()
    (tmp_path / "run" / "deploy.toml").write_text("[serve]\nport = 4321\nconcurrency = 2")
    options = build_parser().parse_args(["serve", str(tmp_path / "run" / named), "--port", "1234"])
    served = _serve_config(options)
    assert (served.port, served.concurrency) == (1234, 2)


@pytest.mark.parametrize("command", ["run", "search", "prune", "restore", "export"])
def test_a_missing_configuration_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "slimdeploy init" in refused(capsys, command, tmp_path / "deploy.toml")


@pytest.mark.parametrize(("command", "option"), [("validate", "--targets"), ("evaluate", "--data")])
def test_what_is_measured_far_from_its_run_says_how_to_name_the_runs_settings(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"deploy.toml does not exist; name a deploy.toml with {option}" in refused(capsys, command, "model.zip")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[search]\ngenerationz = 3", "did you mean 'generations'?"),
        ('[model]\npath = "./nowhere"', "nowhere does not exist"),
        ('[data]\nsource = "nowhere.jsonl"', "nowhere.jsonl does not exist"),
        ('[prune]\npattern = "5:4"', "5:4"),
    ],
)
def test_a_run_that_cannot_start_says_why_and_leaves_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    (tmp_path / "deploy.toml").write_text(f'out = "run"\n{text}\n')
    assert sentence in refused(capsys, "run", tmp_path / "deploy.toml")
    steps = [path.name for path in (tmp_path / "run").glob("*") if path.is_dir()]
    assert steps in ([], ["inputs"])


@pytest.mark.parametrize("command", [("serve",), ("ask",)])
def test_a_folder_that_is_no_artifact_is_refused(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["What is it?"] if command == ("ask",) else []
    assert "manifest.json" in refused(capsys, *command, tmp_path, *question)


def test_an_altered_artifact_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_artifact(tmp_path / "artifact", Manifest("onnx", "demo", "llava")) as folder:
        (folder / "model").write_text("weights")
    (tmp_path / "artifact" / "model").write_text("weightz")
    assert "sha256" in refused(capsys, "serve", tmp_path / "artifact")


def test_what_the_engine_notes_is_shown_by_serve_and_other_packages_notes_are_not(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "artifact", Manifest("onnx", "demo", "llava")):
        pass
    # A process of its own: pytest handles the log of this one.
    program = (
        "import logging, sys\n"
        "from slimdeploy.cli import main\n"
        "from slimdeploy.serve import server\n"
        "def run_server(*_, **__):\n"
        "    logging.getLogger('slimdeploy.serve.engines.onnx').info('held sparse in memory')\n"
        "    logging.getLogger('another').info('of no interest')\n"
        "server.run_server = run_server\n"
        "main(['serve', sys.argv[1]])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "artifact")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "held sparse in memory\n"


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_artifact(tmp_path / "artifact", Manifest("onnx", "demo", "llava")):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, "serve", tmp_path / "artifact", "--port", port)


@pytest.mark.parametrize("flags", [("--port", "99999"), ("--host", "")])
def test_a_flag_is_checked_like_the_setting_it_stands_for(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"serve.{flags[0].removeprefix('--')}" in refused(capsys, "serve", tmp_path, *flags)


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("slimdeploy.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'slimdeploy[edge]'" in refused(capsys, "ask", tmp_path, "What is it?")


def test_a_server_that_is_down_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deploy.toml").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert url in refused(capsys, "validate", url, "--targets", tmp_path / "deploy.toml")


def test_doctor_tells_versions_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    # Kernels that were not built are a problem, with its remedy.
    assert main(["doctor"]) == (0 if library_file() else 1)
    shown = capsys.readouterr().out
    assert f"onnxruntime {version('onnxruntime')}" in shown
    assert __version__ in shown
