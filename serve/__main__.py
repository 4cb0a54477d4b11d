"""`python -m slimdeploy.serve ARTIFACT SETTINGS`: the server as a child of another program (`background_server`).

SETTINGS is a `ServeConfig` as JSON. The first line of the output is the URL. The server ends when its input is closed,
so that it does not outlive a parent that was killed. People start `slimdeploy serve` instead.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from slimdeploy.artifact import open_artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import SlimdeployError

from .server import run_server


def main(path: str, settings: str) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_server(open_artifact(Path(path)), ServeConfig.model_validate_json(settings), _announce)
    except SlimdeployError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
