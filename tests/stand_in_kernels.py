"""What stands for the compiled kernels where a test must not depend on a compiler.

The float64 reference stands for products. A library has functions by name, as one loaded by ctypes has, of which only
its version's can be called.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.kernels import reference
from slimdeploy.packed import PackedTensor


class ReferenceLinear:
    """The interface of `slimdeploy.kernels.library.Linear`. A subclass of its own per test counts what is done with it.

    made: weights laid out. threads: what each product was allowed. kept: weights stored.
    """

    made: int
    threads: list[int]

    def __init__(self, packed: PackedTensor) -> None:
        type(self).made += 1
        self.kept = packed.kept
        self._packed = packed

    def __call__(self, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
        self.threads.append(threads)
        return reference.linear(self._packed, x).astype(np.float32)


class StandInFunction:
    """A function of a library. restype and argtypes: set by whoever declares it."""

    restype: Any
    argtypes: Any

    def __init__(self, result: int | None) -> None:
        self._result = result

    def __call__(self) -> int:
        assert self._result is not None, "only the version of a stand-in is asked for"
        return self._result


class StandInLibrary:
    """What `ctypes.CDLL` gives. version: of its interface, None for a library that cannot tell it."""

    def __init__(self, version: int | None, missing: str = "") -> None:
        self._version = version
        self._missing = missing

    def __getattr__(self, name: str) -> StandInFunction:
        is_version = name == "slimdeploy_interface_version"
        if name == self._missing or (is_version and self._version is None):
            raise AttributeError(f"undefined symbol: {name}")
        function = StandInFunction(self._version if is_version else None)
        setattr(self, name, function)
        return function

    def declared(self) -> list[str]:
        """Names of the functions that have been given their types."""
        return [name for name, function in vars(self).items() if hasattr(function, "argtypes")]
