"""The compiled kernels, loaded by ctypes: what this machine can run, and y = x W^T for packed weights.

Knows the C interface (csrc/slimdeploy_kernels.h) and nothing of torch or onnxruntime.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, ConfigError
from ..packed import PackedTensor, ValueType

Floats = NDArray[np.float32]
Layout = Literal["auto", "sparse", "dense"]

FORCED = "SLIMDEPLOY_KERNELS"
"""Environment variable that names the instruction set to use, for tests and for comparing them."""

_VALUE_TYPES: dict[ValueType, int] = {"bf16": 0, "fp16": 1, "int8": 2, "int4": 3}
_LAYOUTS: tuple[Layout, ...] = ("auto", "sparse", "dense")
_ERROR_BYTES = 512


@dataclass(frozen=True)
class InstructionSet:
    """One set of kernels in the library. supported: by this machine's CPU."""

    name: str
    supported: bool


@dataclass(frozen=True)
class LayoutChoice:
    """How weights are held in memory on this machine, as measured on one thread: nanoseconds per 1000 weights."""

    layout: Layout
    sparse_ns: float
    dense_ns: float


class _Packed(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("value_type", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("kept_per_block", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("mask", ctypes.c_void_p),
        ("mask_count", ctypes.c_uint64),
        ("values", ctypes.c_void_p),
        ("value_count", ctypes.c_uint64),
        ("scales", ctypes.c_void_p),
        ("scale_count", ctypes.c_uint64),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("kept", ctypes.c_int64),
        ("bytes", ctypes.c_uint64),
        ("value_type", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("instruction_set", ctypes.c_char_p),
    )


def library_file() -> Path | None:
    """The shared library beside this module, or None when it was not built (no compiler at installation)."""
    file = Path(__file__).with_name("libslimdeploy_kernels.so")
    return file if file.is_file() else None


def why_not_built() -> str:
    """What setup.py left in the library's place; empty where it left nothing."""
    file = Path(__file__).with_name("not_built.txt")
    return file.read_text().strip() if file.is_file() else ""


@cache
def require_library() -> ctypes.CDLL:
    """Raises ConfigError when the kernels were not built, or cannot be loaded on this machine."""
    file = library_file()
    if file is None:
        raise ConfigError(
            "the compiled kernels are not installed; install g++ and then slimdeploy again, or install a wheel that "
            f"holds them. {why_not_built()}".rstrip()
        )
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise ConfigError(f"{file} cannot be loaded ({error}); install slimdeploy again on this machine") from None
    library.slimdeploy_instruction_set.restype = ctypes.c_char_p
    library.slimdeploy_weight_free.argtypes = (ctypes.c_void_p,)
    library.slimdeploy_weight_free.restype = None
    library.slimdeploy_weight_describe.restype = None
    return library


def instruction_sets() -> list[InstructionSet]:
    """Those in the library, fastest first; the first supported one is used. Raises ConfigError without a library."""
    library, supported = require_library(), ctypes.c_int32()
    found: list[InstructionSet] = []
    while name := library.slimdeploy_instruction_set(len(found), ctypes.byref(supported)):
        found.append(InstructionSet(name.decode(), bool(supported.value)))
    return found


def layout_choice(values: ValueType, kept: float, instruction_set: str | None = None) -> LayoutChoice:
    """What layout "auto" takes for weights of which the share `kept` stays, 0 to 1; measured on first use."""
    library, error = require_library(), ctypes.create_string_buffer(_ERROR_BYTES)
    layout, sparse, dense = ctypes.c_int32(), ctypes.c_double(), ctypes.c_double()
    code = library.slimdeploy_layout_choice(
        _name(instruction_set),
        _VALUE_TYPES[values],
        ctypes.c_double(kept),
        ctypes.byref(layout),
        ctypes.byref(sparse),
        ctypes.byref(dense),
        error,
        _ERROR_BYTES,
    )
    if code:
        raise ConfigError(error.value.decode())
    return LayoutChoice(_LAYOUTS[layout.value], sparse.value, dense.value)


class Linear:
    """A packed weight in the layout of one instruction set's kernels; safe to call from several threads.

    instruction_set: a name, or None for the fastest that this CPU supports. The packed arrays are not kept.
    """

    def __init__(self, packed: PackedTensor, *, instruction_set: str | None = None, layout: Layout = "auto") -> None:
        self._library = require_library()
        self._weight = ctypes.c_void_p()
        # The library is told how many values the mask asks for; that there are so many is checked here.
        packed.validate(f"a packed weight of {packed.rows} x {packed.columns}")
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        arrays = [np.ascontiguousarray(array) for array in (packed.mask, packed.values, packed.scales)]
        kept, block = (int(n) for n in packed.pattern.split(":")) if ":" in packed.pattern else (0, 0)
        view = _Packed(packed.rows, packed.columns, _VALUE_TYPES[packed.encoding.values], packed.encoding.group)
        view.kept_per_block, view.block = kept, block
        view.mask, view.values, view.scales = (array.ctypes.data if array.size else None for array in arrays)
        # Counted in kept weights, also where two of them share a byte.
        view.mask_count, view.value_count, view.scale_count = arrays[0].size, packed.kept, arrays[2].size
        code = self._library.slimdeploy_weight_create(
            ctypes.byref(view),
            _name(instruction_set),
            _LAYOUTS.index(layout),
            ctypes.byref(self._weight),
            error,
            _ERROR_BYTES,
        )
        if code:
            raise ArtifactError(f"a packed weight of {packed.rows} x {packed.columns}: {error.value.decode()}")
        info = _Info()
        self._library.slimdeploy_weight_describe(self._weight, ctypes.byref(info))
        self.rows: int = info.rows
        self.columns: int = info.columns
        self.bytes: int = info.bytes
        self.layout: Layout = _LAYOUTS[info.layout]
        self.instruction_set: str = info.instruction_set.decode()

    def __call__(self, x: Floats, threads: int = 1) -> Floats:
        """x: (n, columns) float32, contiguous. Returns (n, rows)."""
        assert x.dtype == np.float32
        assert x.shape == (len(x), self.columns)
        assert x.flags.c_contiguous
        y = np.empty((len(x), self.rows), np.float32)
        self.run(x.ctypes.data, len(x), y.ctypes.data, threads)
        return y

    def run(self, x: int, count: int, y: int, threads: int) -> None:
        """The same on addresses: x (count, columns), y (count, rows), both float32 and contiguous."""
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        code = self._library.slimdeploy_linear(
            self._weight,
            ctypes.c_void_p(x),
            ctypes.c_int64(count),
            ctypes.c_void_p(y),
            ctypes.c_int32(threads),
            None,
            None,
            error,
            _ERROR_BYTES,
        )
        if code:
            raise ConfigError(error.value.decode())

    def __del__(self) -> None:
        if getattr(self, "_weight", None):
            self._library.slimdeploy_weight_free(self._weight)


def _name(instruction_set: str | None) -> bytes | None:
    chosen = instruction_set or os.environ.get(FORCED)
    return chosen.encode() if chosen else None
