"""Servers of one model: how each is started, when it is ready, what memory it takes, and its end. Knows no figures."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx

from slimdeploy.doctor import most_memory

PROGRAMS = Path(__file__).parents[1] / "programs"
_SECONDS_TO_START = 600.0
_SECONDS_TO_STOP = 30.0
_SECONDS_BETWEEN_LOOKS = 0.05
_LINES_OF_LOG = 5


class ServerError(Exception):
    """A server did not start."""


@dataclass(frozen=True)
class Load:
    """What every server is told to expect. streams: at most. context: tokens of a prompt with its answer, at most."""

    streams: int
    context: int
    threads: int


@dataclass(frozen=True)
class Server:
    """command: for a port of 127.0.0.1. environment: beside this process's own."""

    name: str
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """load_s: from the start of the command to the first answer that names its model."""

    url: str
    pid: int
    load_s: float

    def most_memory(self) -> int:
        """Bytes: the most that each process of its tree has had resident since it began, mapped files too, summed."""
        total = 0
        for process in tree(self.pid):
            with suppress(ProcessLookupError):  # it ended meanwhile
                total += most_memory(process)
        return total


@contextmanager
def running(server: Server, log: Path) -> Iterator[Running]:
    """Raises ServerError with its last words for one that ends, or is not ready in time. log: where it writes."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            server.command(port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.environment},
            start_new_session=True,  # so that it ends with all that it has started
        )
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        while not _ready(url):
            if process.poll() is not None or time.perf_counter() - start > _SECONDS_TO_START:
                said = " / ".join(log.read_text(errors="replace").strip().splitlines()[-_LINES_OF_LOG:])
                raise ServerError(f"{server.name} did not start: {said or 'it said nothing'}")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield Running(url, process.pid, time.perf_counter() - start)
    finally:
        _end(process)
        signal.signal(signal.SIGTERM, before)


def _leave(*_: object) -> NoReturn:
    """Who is told to end while a server runs ends it too."""
    raise SystemExit("terminated")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            with suppress(OSError):  # it ended meanwhile
                waiting += map(int, task.read_text().split())
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_SECONDS_TO_STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
