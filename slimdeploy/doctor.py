"""What this machine has and what slimdeploy can do with it. Imports nothing heavy: versions are read from metadata."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__

# What each extra brings, by the packages that only it needs.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "compress": ("torch", "transformers", "accelerate", "onnx", "onnxscript", "optimum", "safetensors"),
    "edge": ("onnxruntime", "tokenizers", "fastapi", "uvicorn", "httpx"),
    "edge-gpu": ("onnxruntime-gpu", "tokenizers", "fastapi", "uvicorn", "httpx"),
    "vllm": ("vllm",),
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. problem: a sentence with the remedy, or empty."""

    name: str
    value: str
    problem: str = ""


def examine() -> list[Finding]:
    """Versions, hardware, extras; every problem with its remedy."""
    return [
        Finding("slimdeploy", __version__),
        Finding("python", platform.python_version()),
        Finding("system", f"{platform.system()} {platform.machine()}"),
        Finding("cpu", cpu_name()),
        Finding("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        *(_extra(name, packages) for name, packages in EXTRAS.items()),
        *_two_onnxruntimes(),
        *_virtual_environment(),
    ]


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Version by package, for those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    found = installed_versions(packages)
    value = ", ".join(f"{package} {number}" for package, number in found.items())
    missing = [package for package in packages if package not in found]
    if not missing:
        return Finding(f"extra {name}", value)
    return Finding(f"extra {name}", f"not installed (missing {', '.join(missing)})")


def _two_onnxruntimes() -> list[Finding]:
    found = installed_versions(("onnxruntime", "onnxruntime-gpu"))
    if len(found) < 2:
        return []
    problem = (
        "onnxruntime and onnxruntime-gpu overwrite each other's files; "
        "`pip uninstall onnxruntime onnxruntime-gpu`, then install one of slimdeploy[edge] and slimdeploy[edge-gpu]"
    )
    return [Finding("onnxruntime", ", ".join(f"{name} {number}" for name, number in found.items()), problem)]


def _virtual_environment() -> list[Finding]:
    return [] if sys.prefix != sys.base_prefix else [Finding("environment", "not a virtual environment")]
