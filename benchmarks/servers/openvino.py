"""OpenVINO GenAI with int4 weights, behind an endpoint of this folder's own.

SLIMDEPLOY_BENCH_OPENVINO names a Python that has openvino-genai and optimum-intel; benchmarks/README.md installs them.
"""

import os
import subprocess
from pathlib import Path

from slimdeploy.writing import new_folder

from . import PROGRAMS, Load, Server

NAME = "OpenVINO GenAI"
VARIABLE = "SLIMDEPLOY_BENCH_OPENVINO"
INT4 = "OpenVINO GenAI int4"
_EXPORT = ("export", "openvino", "--task", "image-text-to-text", "--weight-format", "int4", "--group-size", "128")


def servers(checkpoint: Path, folder: Path, load: Load) -> list[Server]:
    python, made = Path(os.environ[VARIABLE]).absolute(), folder / "openvino"
    environment = {"HF_HUB_OFFLINE": "1"}
    if not made.exists():
        with new_folder(made) as new:
            command = [python.with_name("optimum-cli"), *_EXPORT, "--sym", "--model", checkpoint, new]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    program = (str(python), str(PROGRAMS / "openvino_endpoint.py"), str(made))
    sizes = (str(load.streams), str(load.threads))
    return [Server(INT4, lambda port: (*program, str(port), *sizes), environment)]
