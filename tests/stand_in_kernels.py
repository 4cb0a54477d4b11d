"""What stands for the compiled kernels where a test must not depend on a compiler: the float64 reference."""

import numpy as np
from numpy.typing import NDArray

from slimdeploy.kernels import reference
from slimdeploy.packed import PackedTensor


class ReferenceLinear:
    """The interface of `slimdeploy.kernels.library.Linear`. A subclass of its own per test counts what is done with it.

    made: weights laid out. threads: what each product was allowed.
    """

    made: int
    threads: list[int]

    def __init__(self, packed: PackedTensor) -> None:
        type(self).made += 1
        self._packed = packed

    def __call__(self, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
        self.threads.append(threads)
        return reference.linear(self._packed, x).astype(np.float32)
