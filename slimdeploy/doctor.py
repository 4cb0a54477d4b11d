"""What this machine has and what slimdeploy can do with it.

Versions are read from metadata. The only extra that is imported is onnxruntime, to ask what it runs on.
"""

import os
import platform
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from . import __version__
from .errors import ConfigError, ServeError
from .kernels.library import FORCED, instruction_set_in_use, instruction_sets, layout_choice
from .kernels.operators import fallback_note
from .packed_tensor import ENCODINGS

Lookup = Callable[[str], str]

# By which kernels are chosen (csrc/dispatch.cpp), as /proc/cpuinfo spells them; the last two are Arm's.
_CPU_FEATURES = (
    *("avx2", "fma", "f16c", "popcnt", "bmi2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp"),
)

# What each extra brings, by the packages that only it needs.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "compress": ("torch", "transformers", "accelerate", "onnx", "onnxscript", "optimum", "safetensors"),
    "edge": ("onnxruntime", "tokenizers", "llguidance", "fastapi", "uvicorn", "httpx", "prometheus-client"),
    "edge-gpu": ("onnxruntime-gpu", "tokenizers", "llguidance", "fastapi", "uvicorn", "httpx", "prometheus-client"),
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
        Finding("cpu features", ", ".join(cpu_features()) or "none that our kernels use"),
        Finding("cores", str(cores())),
        *_memory(),
        *kernels(),
        *(_extra(name, packages, found) for name, packages in EXTRAS.items()),
        *(_two_onnxruntimes(found) or _providers(found)),
    ]


def kernels() -> list[Finding]:
    """Which of our kernels this machine runs, and how it holds packed weights; measuring takes a tenth of a second."""
    if note := fallback_note():
        return [Finding("kernels", "missing", note)]
    try:
        used = instruction_set_in_use()
    except ConfigError as error:
        return [Finding("kernels", "not usable", str(error))]
    sets = instruction_sets()
    supported = [each.name for each in sets if each.supported]
    missing = [each.name for each in sets if not each.supported]
    why = f"as {FORCED} says" if os.environ.get(FORCED) else "the fastest"
    found = [Finding("kernels", f"{used}, {why} of {', '.join(supported)}")]
    if missing:
        found.append(Finding("kernels not used", f"{', '.join(missing)}: not on this CPU"))
    for encoding in ENCODINGS.values():
        half = layout_choice(encoding, kept=0.5)
        found.append(Finding(f"packed {encoding.values}", f"{half}, half of them pruned"))
    return found


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
    """The extra that installs a module which was not found.

    Of a package without its distribution a module may be what is missed first: our command in optimum's namespace makes
    `import optimum` succeed everywhere. In an installed package it is the package's own fault, and no extra's.
    """
    package, _, inside = module.partition(".")
    if inside and installed_versions([package]):
        return None
    return next((name for name, packages in EXTRAS.items() if package in packages), None)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that the system has left, swap included; None where it is not Linux. A container may be given less."""
    free = [_system_info("meminfo", field).removesuffix(" kB") for field in ("MemAvailable", "SwapFree")]
    return sum(1024 * int(kilobytes) for kilobytes in free) if all(free) else None


def most_memory(pid: int | Literal["self"] = "self") -> int:
    """The highest resident memory that a process has had, in bytes. Raises ProcessLookupError for one that is gone.

    Where the system is not Linux, this process alone can be asked, and it may say what its parent had.
    """
    if highest := _system_info(f"{pid}/status", "VmHWM"):
        return 1024 * int(highest.removesuffix(" kB"))
    if pid != "self":
        raise ProcessLookupError(f"process {pid} is gone")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _system_info("cpuinfo", "model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """What this CPU has of the instructions that our kernels use."""
    features = (_system_info("cpuinfo", "flags") or _system_info("cpuinfo", "Features")).split()
    return [name for name in _CPU_FEATURES if name in features]


def _system_info(file: str, field: str) -> str:
    """What Linux tells in a file of /proc, of the first processor if it is about those; empty where it does not."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def _memory() -> list[Finding]:
    free = free_memory()
    return [] if free is None else [Finding("memory", f"{free / 1e9:.1f} GB free, swap included")]


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


def _providers(found: Mapping[str, str]) -> list[Finding]:
    """What onnxruntime offers to run artifacts on; that CUDA is built in does not mean that it works."""
    if not {"onnxruntime", "onnxruntime-gpu"} & found.keys():
        return []
    from .serve.engines.onnx_provider import cuda_problem
    from .serve.engines.onnx_sessions import import_onnxruntime

    try:
        onnxruntime = import_onnxruntime()
    except ServeError as error:
        return [Finding("onnxruntime", "not usable", str(error))]
    offered = ", ".join(onnxruntime.get_available_providers())
    problem = cuda_problem(onnxruntime)
    runs = f"on the CPU: {problem}" if problem else "with CUDA"
    return [Finding("onnxruntime", f"offers {offered}; serve.onnx.provider = 'auto' runs artifacts {runs}")]
