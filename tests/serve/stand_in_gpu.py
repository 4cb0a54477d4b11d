"""A GPU for machines without one: onnxruntime with CUDA as far as a caller can tell, computing on the CPU."""

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from slimdeploy.serve.engines import onnx, onnx_provider, onnx_sessions

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Gpu:
    """An onnxruntime built with CUDA, on a machine where it works. What is on its GPU lies in main memory.

    attention: where its graphs read the KV cache. falls_back: sessions are made without CUDA and without a word.
    """

    SessionOptions = onnxruntime.SessionOptions  # type: ignore[attr-defined]

    def __init__(self, attention: str = "Cuda", falls_back: bool = False, broken: str = "") -> None:
        self.attention, self.falls_back, self.broken = attention, falls_back, broken
        self.providers: list[Any] = []
        self.on_the_gpu = 0
        self.OrtValue = self

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", CUDA, CPU]

    def ortvalue_from_shape_and_type(self, _: list[int], __: Any, device: str) -> None:
        assert device == "cuda"
        if self.broken:
            raise RuntimeError(self.broken)

    def ortvalue_from_numpy(self, array: Any, device: str) -> Any:
        self.on_the_gpu += device == "cuda"
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def InferenceSession(self, file: str, options: Any, providers: Any, enable_fallback: bool) -> Any:  # noqa: N802
        assert not enable_fallback
        self.providers = providers
        session = onnxruntime.InferenceSession(file, options, providers=[CPU])  # type: ignore[attr-defined]
        session.get_providers = lambda: [CPU] if self.falls_back else [CUDA, CPU]
        names = [self.attention if "past" in node.name else "Cuda" for node in session.get_inputs()]
        session.get_input_memory_infos = lambda: [SimpleNamespace(name=name) for name in names]
        return session


def install_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """What the engine gets for onnxruntime, with a driver for it."""
    monkeypatch.setattr(onnx, "import_onnxruntime", lambda: gpu)
    monkeypatch.setattr(onnx_sessions, "import_onnxruntime", lambda: gpu)
    install_driver(monkeypatch)


def install_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_provider, "_DRIVER", "libc.so.6")  # one that any machine can load
