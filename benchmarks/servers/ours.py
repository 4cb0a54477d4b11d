"""slimdeploy serve, of an artifact whose weights are packed."""

import sys
from pathlib import Path

from . import Load, Server


def server(name: str, artifact: Path, load: Load) -> Server:
    """Its settings are the defaults, but for the number of requests at a time."""
    config = artifact.with_suffix(".toml")
    config.write_text(f"[serve]\nconcurrency = {load.streams}\nthreads = {load.threads}\n")
    command = (sys.executable, "-m", "slimdeploy", "serve", str(artifact), "--config", str(config), "--port")
    return Server(name, lambda port: (*command, str(port)))
