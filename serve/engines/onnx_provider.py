"""Which of onnxruntime's execution providers runs an artifact: CUDA's, with the CPU's for what it lacks, or the CPU's.

Knows no graph. onnxruntime is handed in, so that importing this costs nothing.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, assert_never

import numpy as np

from slimdeploy.config import ProviderSetting
from slimdeploy.errors import ServeError, first_line
from slimdeploy.kernels.operators import fallback_note

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_DRIVER = "libcuda.so.1"
# Exports are verified in float32; by itself CUDA would round what it multiplies to the 11 bits of TF32.
_CUDA_OPTIONS = {"use_tf32": "0"}
_REMEDY = (
    "install slimdeploy[edge-gpu] and not [edge], NVIDIA's driver, CUDA and cuDNN, or set serve.onnx.provider = 'cpu'"
)


@dataclass(frozen=True)
class Provider:
    """What was chosen. why: in words, for the log."""

    device: Literal["cpu", "cuda"]
    why: str

    @property
    def in_order(self) -> list[Any]:
        """As a session takes them; the second runs what the first cannot."""
        return [_CPU] if self.device == "cpu" else [(_CUDA, _CUDA_OPTIONS), _CPU]

    def require(self, session: Any, file: Path) -> None:
        """Raises ServeError where onnxruntime made the session of `file` without the provider and only logged it."""
        if self.device == "cuda" and _CUDA not in session.get_providers():
            raise ServeError(f"onnxruntime would run {file} on the CPU, and not with CUDA as was asked; {_REMEDY}")

    def note_on_packed(self) -> str | None:
        """What it means for packed weights that our operators do not run here; None where they do."""
        if self.device == "cpu":
            return fallback_note()
        return (
            "Packed weights are unpacked to float32 and save no memory here: our kernels are for CPUs. For the GPU "
            "export with export.onnx.weights = 'dense-fp16', or set serve.onnx.provider = 'cpu'"
        )

    def __str__(self) -> str:
        return f"runs {'on the CPU' if self.device == 'cpu' else 'with CUDA'} ({self.why})"


CPU = Provider("cpu", "nothing else was asked for")


def choose_provider(onnxruntime: ModuleType, setting: ProviderSetting) -> Provider:
    """As `serve.onnx.provider` says. Raises ServeError where that is CUDA, and CUDA does not work here."""
    asked = f"serve.onnx.provider = '{setting}'"
    if setting == "cpu":
        return Provider("cpu", asked)
    problem = cuda_problem(onnxruntime)
    match setting:
        case "auto":
            return Provider("cpu", f"{asked}: {problem}") if problem else Provider("cuda", f"{asked}, and CUDA works")
        case "cuda":
            if problem:
                raise ServeError(f"{asked}, but {problem}; {_REMEDY}")
            return Provider("cuda", asked)
        case _:
            assert_never(setting)


def cuda_problem(onnxruntime: ModuleType) -> str | None:
    """Why onnxruntime runs nothing with CUDA on this machine, in a clause; None where it does."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without CUDA"
    try:
        # Asked first: without it onnxruntime would complain of CUDA's libraries on machines that have no GPU.
        ctypes.CDLL(_DRIVER)
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda")
    except (OSError, RuntimeError) as error:
        return f"CUDA does not work here ({first_line(error)})"
    return None
