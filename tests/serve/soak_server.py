"""`slimdeploy serve` as the process that a device would run, and what the system tells of it from outside."""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from slimdeploy.artifact import Artifact

_SECONDS_TO_START = 120
_SECONDS_TO_STOP = 20
_PAGE = 4096


@dataclass(frozen=True)
class Figures:
    """Of the process. resident: bytes of memory. files: descriptors that are open. at: a moment."""

    at: float
    resident: int
    threads: int
    files: int


@dataclass(frozen=True)
class ServerProcess:
    url: str
    pid: int
    log: Path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def figures(self) -> Figures:
        process = Path(f"/proc/{self.pid}")
        resident = int((process / "statm").read_text().split()[1]) * _PAGE
        count = {name: sum(1 for _ in (process / name).iterdir()) for name in ("task", "fd")}
        return Figures(time.monotonic(), resident, count["task"], count["fd"])

    def metrics(self, key: str) -> dict[str, float]:
        """Sums over labels, by the names of samples."""
        text = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=20).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found


@contextmanager
def server_process(artifact: Artifact, folder: Path, settings: str, keys: str) -> Iterator[ServerProcess]:
    """Until the body ends; then it is told to stop, and must end by itself.

    settings: lines of [serve]. keys: lines of its file of keys. The log has a line for every request.
    """
    config, key_file, log_file = folder / "deploy.toml", folder / "keys.txt", folder / "server.log"
    config.write_text(f"[serve]\n{settings}api_keys_file = 'keys.txt'\n")
    key_file.write_text(keys)
    command = [sys.executable, "-m", "slimdeploy", "serve", str(artifact.path), "--config", str(config), "--port", "0"]
    with log_file.open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            assert child.stdout is not None
            assert select.select([child.stdout], [], [], _SECONDS_TO_START)[0], log_file.read_text()
            line = child.stdout.readline()
            assert " at http" in line, log_file.read_text()
            yield ServerProcess(line.split()[-1], child.pid, log_file)
            child.terminate()
            child.wait(_SECONDS_TO_STOP)
        finally:
            child.kill()
