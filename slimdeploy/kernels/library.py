"""The compiled kernels, loaded by ctypes: what this machine can run, and y = x W^T for packed weights.

Knows the C interface (csrc/slimdeploy_kernels.h) and nothing of torch or onnxruntime.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, ConfigError
from ..packed import Encoding, PackedTensor, ValueType
from ..packed_tensor import block_counts

Floats = NDArray[np.float32]
Layout = Literal["auto", "sparse", "dense"]

FORCED = "SLIMDEPLOY_KERNELS"
"""Environment variable that names the instruction set to use, for tests and for comparing them."""

INTERFACE_VERSION = 3
"""Of the C functions and structures below; slimdeploy_interface_version tells the library's."""

WORTH_MEASURING = 2**20
"""Weights from which on layout "auto" is a choice; smaller matrices stay sparse. kWorthMeasuring in csrc/weight.h."""

_VALUE_TYPES: dict[ValueType, int] = {"bf16": 0, "fp16": 1, "int8": 2, "int4": 3}
_LAYOUTS: tuple[Layout, ...] = ("auto", "sparse", "dense")
ERROR_BYTES = 512


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

    def __str__(self) -> str:
        if self.layout == "dense":
            return f"held dense in memory ({self.dense_ns:.0f} ns per 1000 weights; sparse {self.sparse_ns:.0f})"
        smaller = " and larger" if self.dense_ns < self.sparse_ns else ""
        return f"held sparse in memory ({self.sparse_ns:.0f} ns per 1000 weights; dense {self.dense_ns:.0f}{smaller})"


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


# Without these ctypes would hand every number on as 32 bits. The last two arguments are the error and its size.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "slimdeploy_interface_version": (ctypes.c_int32, ()),
    "slimdeploy_instruction_set": (ctypes.c_char_p, (ctypes.c_int32, ctypes.POINTER(ctypes.c_int32))),
    "slimdeploy_layout_choice": (
        ctypes.c_int,
        (
            ctypes.c_char_p,  # instruction set
            ctypes.c_int32,  # value type
            ctypes.c_int32,  # group
            ctypes.c_double,  # share kept
            ctypes.POINTER(ctypes.c_int32),
            ctypes.POINTER(ctypes.c_double),
            ctypes.POINTER(ctypes.c_double),
            ctypes.c_char_p,
            ctypes.c_size_t,
        ),
    ),
    "slimdeploy_weight_create": (
        ctypes.c_int,
        (
            ctypes.POINTER(_Packed),
            ctypes.c_char_p,  # instruction set
            ctypes.c_int32,  # layout
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_char_p,
            ctypes.c_size_t,
        ),
    ),
    "slimdeploy_weight_describe": (None, (ctypes.c_void_p, ctypes.POINTER(_Info))),
    "slimdeploy_weight_free": (None, (ctypes.c_void_p,)),
    "slimdeploy_linear": (
        ctypes.c_int,
        (
            ctypes.c_void_p,  # weight
            ctypes.c_void_p,  # x
            ctypes.c_int64,  # count
            ctypes.c_void_p,  # y
            ctypes.c_int32,  # threads
            ctypes.c_void_p,  # what runs tasks in parallel
            ctypes.c_void_p,  # its pool
            ctypes.c_char_p,
            ctypes.c_size_t,
        ),
    ),
    "slimdeploy_attend": (
        ctypes.c_int,
        (
            ctypes.c_void_p,  # what is asked
            ctypes.c_char_p,  # instruction set
            ctypes.c_int32,  # threads
            ctypes.c_void_p,  # what runs tasks in parallel
            ctypes.c_void_p,  # its pool
            ctypes.c_char_p,
            ctypes.c_size_t,
        ),
    ),
}


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
    """Raises ConfigError when the kernels were not built, do not fit this module, or cannot be loaded here."""
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
    if not _declare_functions(library):
        raise ConfigError(f"{file} was built from another version of slimdeploy; install slimdeploy again")
    return library


def _declare_functions(library: ctypes.CDLL) -> bool:
    """Tell ctypes of every function; False where the library is not of the interface that they are declared for."""
    try:
        # Asked before anything else is believed of the library. Undeclared, a function takes and returns C's int.
        if library.slimdeploy_interface_version() != INTERFACE_VERSION:
            return False
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        return False
    return True


def instruction_sets() -> list[InstructionSet]:
    """Those in the library, fastest first; the first supported one is used. Raises ConfigError without a library."""
    library, supported = require_library(), ctypes.c_int32()
    found: list[InstructionSet] = []
    while name := library.slimdeploy_instruction_set(len(found), ctypes.byref(supported)):
        found.append(InstructionSet(name.decode(), bool(supported.value)))
    return found


def instruction_set_in_use() -> str:
    """The set that `FORCED` names, or the fastest one. Raises ConfigError where this CPU or build lacks that one."""
    supported = [each.name for each in instruction_sets() if each.supported]
    forced = os.environ.get(FORCED)
    if forced and forced not in supported:
        raise ConfigError(
            f"{FORCED} = '{forced}' is no set of kernels for this CPU; set it to one of {', '.join(supported)}, or to "
            "nothing for the fastest"
        )
    return forced or supported[0]


def layout_choice(encoding: Encoding, kept: float, instruction_set: str | None = None) -> LayoutChoice:
    """What layout "auto" takes for masked matrices of at least `WORTH_MEASURING` weights; measured on first use.

    kept: the share of weights that stays, 0 to 1.
    """
    library, error = require_library(), ctypes.create_string_buffer(ERROR_BYTES)
    layout, sparse, dense = ctypes.c_int32(), ctypes.c_double(), ctypes.c_double()
    code = library.slimdeploy_layout_choice(
        encoded_name(instruction_set),
        _VALUE_TYPES[encoding.values],
        encoding.group,
        kept,
        ctypes.byref(layout),
        ctypes.byref(sparse),
        ctypes.byref(dense),
        error,
        ERROR_BYTES,
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
        error = ctypes.create_string_buffer(ERROR_BYTES)
        arrays = [np.ascontiguousarray(array) for array in (packed.mask, packed.values, packed.scales)]
        view = _Packed(packed.rows, packed.columns, _VALUE_TYPES[packed.encoding.values], packed.encoding.group)
        view.kept_per_block, view.block = _blocks(packed.pattern)
        view.mask, view.values, view.scales = (array.ctypes.data if array.size else None for array in arrays)
        # Counted in kept weights, also where two of them share a byte.
        view.mask_count, view.value_count, view.scale_count = arrays[0].size, packed.kept, arrays[2].size
        code = self._library.slimdeploy_weight_create(
            ctypes.byref(view),
            encoded_name(instruction_set),
            _LAYOUTS.index(layout),
            ctypes.byref(self._weight),
            error,
            ERROR_BYTES,
        )
        if code:
            raise ArtifactError(f"a packed weight of {packed.rows} x {packed.columns}: {error.value.decode()}")
        info = _Info()
        self._library.slimdeploy_weight_describe(self._weight, ctypes.byref(info))
        self.rows: int = info.rows
        self.columns: int = info.columns
        self.kept: int = info.kept
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
        error = ctypes.create_string_buffer(ERROR_BYTES)
        code = self._library.slimdeploy_linear(self._weight, x, count, y, threads, None, None, error, ERROR_BYTES)
        if code:
            raise ConfigError(error.value.decode())

    def __reduce__(self) -> NoReturn:
        # The weight of a copy would be freed twice.
        raise TypeError(
            "a Linear cannot be copied or pickled: its weight is in the library; make another from the arrays"
        )

    def __del__(self) -> None:
        if getattr(self, "_weight", None):
            self._library.slimdeploy_weight_free(self._weight)


def _blocks(pattern: str) -> tuple[int, int]:
    """N and M of "N:M"; zeros for any other pattern."""
    return block_counts(pattern) or (0, 0)


def encoded_name(instruction_set: str | None) -> bytes | None:
    chosen = instruction_set or os.environ.get(FORCED)
    return chosen.encode() if chosen else None
