"""The arguments of `slimdeploy export`, which `optimum-cli export slimdeploy` takes as well.

Imports next to nothing, because optimum-cli reads this file whatever it is asked for.
"""

import argparse
from pathlib import Path

DEFAULT_CONFIG = "deploy.toml"
DEFAULT_HELP = "default: %(default)s"


def add_export_arguments(command: argparse.ArgumentParser) -> None:
    add_config_argument(command)
    command.add_argument("--to", choices=("onnx", "vllm", "checkpoint"), help="another format than the configured one")
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="default: artifact/ (or FORMAT/) in the run's folder"
    )


def add_config_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, nargs="?", default=Path(DEFAULT_CONFIG), help=DEFAULT_HELP)
