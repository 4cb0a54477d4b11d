"""llama.cpp's Q4_0 through its own library, ggml, in every kind of buffer that its CPU backend offers.

llama-bench times whole models and test-backend-ops neither changes the weights between runs nor uses the rearranged
buffers, so ggml is called here as llama.cpp does it: weights in the buffer under test, a graph of multiplications.
SLIMDEPLOY_BENCH_GGML names the folder with libggml-base.so and libggml-cpu.so; benchmarks/README.md builds them.
"""

import ctypes
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from rounds import Call, Contender, Floats, Prepare

from . import Stack

FOLDER = "SLIMDEPLOY_BENCH_GGML"
LAYERS_PER_GRAPH = 8
_F32, _Q4_0 = 0, 2  # enum ggml_type
_BLOCK, _BLOCK_BYTES = 32, 18
_OBJECTS = 64

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS = {
    "ggml_log_set": (None, [_POINTER, _POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead": (_SIZE, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [_POINTER]),
    "ggml_backend_reg_dev_get": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_dev_buffer_type": (_POINTER, [_POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
}


_SILENT = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)(lambda *_: None)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True)
class _Ggml:
    """base: tensors and graphs. cpu: the backend. backend: a handle of it; plain_buffer: where activations lie."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL
    backend: int
    plain_buffer: int
    buffers: dict[str, int]

    def tensors(self) -> int:
        """A space for the descriptions of tensors; their data come with `allocate`."""
        base = self.base
        bytes_needed = _OBJECTS * base.ggml_tensor_overhead() + base.ggml_graph_overhead()
        return base.ggml_init(_InitParams(bytes_needed, None, True))

    def allocate(self, tensors: int, buffer: int) -> None:
        if not self.base.ggml_backend_alloc_ctx_tensors_from_buft(tensors, buffer):
            raise MemoryError("ggml could not allocate its tensors")


def available() -> bool:
    return FOLDER in os.environ


def contenders(stack: Stack, rng: np.random.Generator) -> list[Contender]:
    if not available():
        return []
    ggml = _load(Path(os.environ[FOLDER]))
    return [_contender(ggml, name, stack, rng) for name in ggml.buffers]


def _load(folder: Path) -> _Ggml:
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    base.ggml_init.restype, base.ggml_init.argtypes = _POINTER, [_InitParams]
    cpu.ggml_backend_cpu_init.restype = cpu.ggml_backend_cpu_reg.restype = _POINTER
    cpu.ggml_backend_cpu_set_n_threads.argtypes = [_POINTER, _INT]
    base.ggml_log_set(ctypes.cast(_SILENT, _POINTER), None)
    registry = cpu.ggml_backend_cpu_reg()
    device = base.ggml_backend_reg_dev_get(registry, 0)
    plain = base.ggml_backend_dev_buffer_type(device)
    address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    extra = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(device)
    buffers = {"plain": plain}
    for buffer in takewhile(bool, extra):  # the list ends with a null pointer
        buffers[base.ggml_backend_buft_name(buffer).decode()] = buffer
    return _Ggml(base, cpu, cpu.ggml_backend_cpu_init(), plain, buffers)


def _contender(ggml: _Ggml, buffer: str, stack: Stack, rng: np.random.Generator) -> Contender:
    layer_bytes = stack.size**2 // _BLOCK * _BLOCK_BYTES
    chunks = [
        _graph(ggml, ggml.buffers[buffer], stack.size, rng) for _ in range(stack.chunks(layer_bytes, LAYERS_PER_GRAPH))
    ]
    return Contender(f"llama.cpp Q4_0, {buffer}", layer_bytes, LAYERS_PER_GRAPH, chunks)


def _graph(ggml: _Ggml, buffer: int, size: int, rng: np.random.Generator) -> Prepare:
    base, space = ggml.base, ggml.tensors()
    weights = [base.ggml_new_tensor_2d(space, _Q4_0, size, size) for _ in range(LAYERS_PER_GRAPH)]
    ggml.allocate(space, buffer)
    for weight in weights:
        blocks = rng.integers(0, 256, (size * size // _BLOCK, _BLOCK_BYTES), np.uint8)
        blocks[:, :2] = np.frombuffer(np.float16(0.22 / size**0.5).tobytes(), np.uint8)  # a block begins with its scale
        base.ggml_backend_tensor_set(weight, blocks.ctypes.data, 0, blocks.nbytes)

    def prepare(x: Floats, threads: int) -> Call:
        ggml.cpu.ggml_backend_cpu_set_n_threads(ggml.backend, threads)
        space = ggml.tensors()
        inputs = last = base.ggml_new_tensor_2d(space, _F32, size, len(x))
        for weight in weights:
            last = base.ggml_mul_mat(space, weight, last)
        graph = base.ggml_new_graph(space)
        base.ggml_build_forward_expand(graph, last)
        ggml.allocate(space, ggml.plain_buffer)
        base.ggml_backend_tensor_set(inputs, x.ctypes.data, 0, x.nbytes)

        def run() -> None:
            if base.ggml_backend_graph_compute(ggml.backend, graph):
                raise RuntimeError("ggml refused to compute its graph")

        return run

    return prepare
