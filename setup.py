"""Builds the kernels' library (slimdeploy/kernels/csrc, with CMake) into the package; all else is in pyproject.toml.

Where that cannot be done, the package is installed without the library, and a text in its place says why: pip hides
what a build prints, so `slimdeploy doctor` shows it. SLIMDEPLOY_REQUIRE_KERNELS=1 makes it an error instead.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("slimdeploy/kernels")
LIBRARY = "libslimdeploy_kernels.so"
REASON = "not_built.txt"


class KernelsError(Exception):
    """The library could not be built; says why."""


class BuildKernels(build_ext):
    """Builds the library into the package, or leaves the reason there."""

    def run(self) -> None:
        folder = KERNELS if self.inplace else Path(self.build_lib) / KERNELS
        folder.mkdir(parents=True, exist_ok=True)
        for name in (LIBRARY, REASON):
            (folder / name).unlink(missing_ok=True)
        try:
            shutil.copy(build(), folder)
        except KernelsError as error:
            if os.environ.get("SLIMDEPLOY_REQUIRE_KERNELS") == "1":
                raise
            (folder / REASON).write_text(f"When slimdeploy was built: {error}\n")
            self.warn(f"slimdeploy is installed without its compiled kernels and will be slow: {error}")


class PlatformWheel(bdist_wheel):
    """Tagged for the platform and any Python 3: ctypes loads the library."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def compiler() -> str | None:
    """The C++ compiler that CMake will find."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def build() -> Path:
    """Builds in a folder that later builds continue, and returns the library's file."""
    toolchain = os.environ.get("CMAKE_TOOLCHAIN_FILE")
    if compiler() is None and toolchain is None:
        raise KernelsError("no C++ compiler (c++, g++ or clang++) is on the PATH, and CXX is not set")
    folder = Path("build").resolve() / f"kernels-{Path(toolchain).stem if toolchain else platform.machine()}"
    # Without its cache CMake looks for everything anew, but compiles only what has changed.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    generator = () if shutil.which("make") else ("-G", "Ninja")
    options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    run("cmake", "-S", str((KERNELS / "csrc").resolve()), "-B", str(folder), *generator, *options)
    run("cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1))
    return folder / LIBRARY


def run(*command: str) -> None:
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise KernelsError(f"{command[0]} cannot be run: {error}") from None
    sys.stdout.write(result.stdout)
    if result.returncode != 0:
        raise KernelsError(f"`{' '.join(command)}` failed:\n{result.stdout[-3000:]}")


def build_tools() -> list[str]:
    """What to install for the build beyond setuptools: only what is missing and of use."""
    if compiler() is None:
        return []
    programs = {"cmake": shutil.which("cmake"), "ninja": shutil.which("make") or shutil.which("ninja")}
    return [package for package, found in programs.items() if not found]


setup(
    setup_requires=build_tools(),
    ext_modules=[Extension("slimdeploy.kernels.libslimdeploy_kernels", sources=[])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
