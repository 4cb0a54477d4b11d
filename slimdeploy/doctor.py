"""What this machine has and what slimdeploy can do with it. Imports no extra: versions are read from metadata."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .errors import ConfigError
from .kernels.library import instruction_sets, layout_choice, library_file, why_not_built
from .packed import ValueType

Lookup = Callable[[str], str]

# What is measured to tell how packed weights are held: half of them kept.
_MEASURED: tuple[ValueType, ...] = ("int4", "int8", "bf16")
_MEASURED_KEPT = 0.5

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


def examine(lookup: Lookup = version) -> list[Finding]:
    """Versions, hardware, extras; every problem with its remedy. lookup: version of an installed package."""
    packages = sorted({package for extra in EXTRAS.values() for package in extra})
    found = installed_versions(packages, lookup)
    return [
        Finding("slimdeploy", __version__),
        Finding("python", platform.python_version()),
        Finding("system", f"{platform.system()} {platform.machine()}"),
        Finding("cpu", cpu_name()),
        Finding("cores", str(cores())),
        *kernels(library_file()),
        *(_extra(name, packages, found) for name, packages in EXTRAS.items()),
        *_two_onnxruntimes(found),
    ]


def kernels(file: Path | None) -> list[Finding]:
    """Which of our kernels this machine runs, and how it holds packed weights; measuring takes half a second.

    file: the kernels' library, or None where it was not built.
    """
    if file is None:
        problem = (
            "packed weights run through onnxruntime's or torch's own operators, dense and slower; install g++ and then "
            f"slimdeploy again, or a wheel with kernels. {why_not_built()}"
        ).rstrip()
        return [Finding("kernels", "not built", problem)]
    try:
        return _working_kernels()
    except ConfigError as error:
        return [Finding("kernels", "not usable", str(error))]


def _working_kernels() -> list[Finding]:
    sets = instruction_sets()
    supported = [each.name for each in sets if each.supported]
    missing = [each.name for each in sets if not each.supported]
    found = [Finding("kernels", f"{supported[0]}, the fastest of {', '.join(supported)}")]
    if missing:
        found.append(Finding("kernels not used", f"{', '.join(missing)}: not on this CPU"))
    return found + [_layout(values) for values in _MEASURED]


def _layout(values: ValueType) -> Finding:
    choice = layout_choice(values, _MEASURED_KEPT)
    speed = f"sparse {choice.sparse_ns:.0f}, dense {choice.dense_ns:.0f} ns per 1000 weights"
    return Finding(f"packed {values}", f"kept {choice.layout} in memory ({speed}; {1 - _MEASURED_KEPT:.0%} pruned)")


def installed_versions(packages: Iterable[str], lookup: Lookup = version) -> dict[str, str]:
    """Version by package, for those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = lookup(package)
        except PackageNotFoundError:
            continue
    return found


def require_extra(name: str) -> None:
    """Raises ConfigError that says what to install, when a package of the extra is missing."""
    missing = [package for package in EXTRAS[name] if package not in installed_versions(EXTRAS[name])]
    # onnxruntime-gpu is the same module in another build.
    if missing and not (missing == ["onnxruntime"] and installed_versions(["onnxruntime-gpu"])):
        raise ConfigError(f"{', '.join(missing)} is not installed; pip install 'slimdeploy[{name}]'")


def extra_with(module: str) -> str | None:
    """The extra that installs a module."""
    return next((name for name, packages in EXTRAS.items() if module in packages), None)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _extra(name: str, packages: Sequence[str], found: Mapping[str, str]) -> Finding:
    missing = [package for package in packages if package not in found]
    if missing:
        return Finding(f"extra {name}", f"not installed (missing {', '.join(missing)})")
    return Finding(f"extra {name}", ", ".join(f"{package} {found[package]}" for package in packages))


def _two_onnxruntimes(found: Mapping[str, str]) -> list[Finding]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in found]
    if len(both) < 2:
        return []
    problem = (
        "onnxruntime and onnxruntime-gpu overwrite each other's files; "
        "`pip uninstall onnxruntime onnxruntime-gpu`, then install one of slimdeploy[edge] and slimdeploy[edge-gpu]"
    )
    return [Finding("onnxruntime", ", ".join(f"{name} {found[name]}" for name in both), problem)]
