"""A server with the echoing engine in a process of its own, which can be weighed and killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from echo_engine import EchoEngine

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.server import Server, listen, url_of


@dataclass(frozen=True)
class Process:
    """url: where it answers."""

    url: str
    child: "subprocess.Popen[str]"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    @property
    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
        return int(kilobytes) / 1000


@contextmanager
def echo_server(config: ServeConfig, seconds_per_token: float = 0.0) -> Iterator[Process]:
    command = [sys.executable, __file__, config.model_dump_json(), str(seconds_per_token)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield Process(child.stdout.readline().strip(), child)
        finally:
            child.kill()


def main(settings: str, seconds_per_token: str) -> None:
    config, engine = ServeConfig.model_validate_json(settings), EchoEngine(float(seconds_per_token))
    listener = listen(config)
    server = Server(create_app(engine, config), engine, config, lambda: print(url_of(listener), flush=True))  # noqa: T201
    server.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
