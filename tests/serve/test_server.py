"""The server starts, says where, refuses a port that is taken, and ends with its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from slimdeploy.artifact import Artifact, Manifest
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.serve.server import background_server, listen, run_server, url_of

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 2}


def test_a_child_process_serves_and_is_gone_afterwards(artifact: Artifact) -> None:
    with background_server(artifact, ServeConfig(threads=1)) as url:
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    missing = Artifact(tmp_path / "nothing", Manifest("onnx", "m", "llava"))
    with (
        pytest.raises(ServeError, match=r"did not start: .*no manifest\.json"),
        background_server(missing, ServeConfig()),
    ):
        pytest.fail("it started")


def test_a_child_that_is_never_ready_is_given_up(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimdeploy.serve.server._SECONDS_TO_START", 0.01)
    with (
        pytest.raises(ServeError, match=r"was not ready after 0\.01 s"),
        background_server(artifact, ServeConfig()),
    ):
        pytest.fail("it started")


def test_a_child_ends_when_its_parent_is_killed(artifact: Artifact) -> None:
    code = (
        "import sys, time; from pathlib import Path; from slimdeploy.artifact import open_artifact; "
        "from slimdeploy.config import ServeConfig; from slimdeploy.serve.server import background_server\n"
        "with background_server(open_artifact(Path(sys.argv[1])), ServeConfig(threads=1)) as url:\n"
        "    print(url, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(artifact.path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert httpx.get(f"{url}/health").status_code == 200
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its parent")


def test_an_interrupt_ends_the_server_quietly(artifact: Artifact) -> None:
    code = (
        "import sys; from pathlib import Path; from slimdeploy.artifact import open_artifact; "
        "from slimdeploy.config import ServeConfig; from slimdeploy.serve.server import run_server\n"
        "run_server(open_artifact(Path(sys.argv[1])), ServeConfig(port=0), lambda url: print(url, flush=True))"
    )
    command = [sys.executable, "-c", code, str(artifact.path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 200
    os.kill(server.pid, signal.SIGINT)
    _, errors = server.communicate(timeout=15)
    assert (server.returncode, errors) == (0, "")


def test_a_port_in_use_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # The artifact does not exist: loading it first would be another error.
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use"):
            run_server(Artifact(tmp_path / "nothing", Manifest("onnx", "m", "llava")), ServeConfig(port=port))


def test_a_host_that_is_not_here_is_named() -> None:
    with pytest.raises(ServeError, match=r"203\.0\.113\.1"):
        listen(ServeConfig(host="203.0.113.1", port=0))
    with pytest.raises(ServeError, match="no such host!"):
        listen(ServeConfig(host="no such host!", port=0))


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_the_url_is_one_that_this_machine_reaches(host: str, shown: str) -> None:
    with listen(ServeConfig(host=host, port=0)) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"
