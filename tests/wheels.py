"""Builds wheels of this tree and installs them into environments of their own, as a user would."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "slimdeploy" / "kernels" / "csrc"
INSTALLED_AS = {
    "slimdeploy": "slimdeploy",
    "exporters": "slimdeploy/exporters",
    "serve": "slimdeploy/serve",
    "optimum_command": "optimum/commands/register",
}
KERNELS = ("slimdeploy/kernels/libslimdeploy_kernels.so", "slimdeploy/kernels/not_built.txt")
"""What a build adds to the package: the library, or the reason why there is none."""

NO_COMPILER = {"PATH": str(Path(sys.executable).parent)}
ARM = {"CMAKE_TOOLCHAIN_FILE": str(CSRC / "aarch64.cmake")}


def copy_tree(folder: Path) -> Path:
    """What a build reads, without what an earlier build left there. Kernels are compiled where the tree's own are."""
    left = shutil.ignore_patterns("__pycache__", "csrc", *(Path(name).name for name in KERNELS))
    for name in INSTALLED_AS:
        shutil.copytree(ROOT / name, folder / name, ignore=left)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "slimdeploy" / "kernels" / "csrc").symlink_to(CSRC)
    (folder / "build").mkdir()
    for machine in {platform.machine(), "aarch64"}:
        compiled = ROOT / "build" / f"kernels-{machine}"
        compiled.mkdir(parents=True, exist_ok=True)
        (folder / "build" / compiled.name).symlink_to(compiled)
    return folder


def build_wheel(folder: Path, *options: str, **environment: str) -> Path:
    source = copy_tree(folder / "source")
    offline = ("--no-deps", "--no-build-isolation", "--no-cache-dir")
    pip("wheel", *offline, *options, "--wheel-dir", folder, source, environment=environment)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel, which borrows what slimdeploy depends on. Returns its folder of programs."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file comes last, and .pth files inside it, such as an editable install's, do not count.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip("--python", folder, "install", "--no-deps", "--no-index", wheel)
    return folder / "bin"


def pip(*arguments: object, environment: Mapping[str, str] | None = None) -> None:
    """This environment's pip, which `--python FOLDER` lets install into another one."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    assert result.returncode == 0, result.stderr[-2000:]
