"""Second moments of what linear layers see, Σ x xᵀ over tokens, and their inverse as SparseGPT wants it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import PruneError
from ..progress import Progress
from .sparsegpt import DAMPING, Curvature, curvature

_COLUMNS = 512
"""What of a matrix lies above its diagonal is summed up in strips of so many rows."""


class Moments:
    """Of the layers of one block. Layers that were given one tensor (query, key and value) share one matrix.

    Matrices are symmetric: only the upper triangle is kept up.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._owners: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    def add(self, name: str, inputs: Tensor) -> None:
        """Count `inputs` (tokens, in) of a layer."""
        if self._last and self._last[1] is inputs:
            self._owners[name] = self._last[0]
            return
        self._owners[name], self._last = name, (name, inputs)
        seen = inputs.float()
        if name not in self._sums:
            self._sums[name] = seen.new_zeros(seen.shape[1], seen.shape[1])
        for start in range(0, seen.shape[1], _COLUMNS):
            rows = slice(start, start + _COLUMNS)
            self._sums[name][rows, start:].addmm_(seen[:, rows].t(), seen[:, start:])

    def curvatures(self, progress: Progress) -> Iterator[tuple[list[str], Curvature]]:
        """Layers with what they share; each matrix is given up once it has been handed out.

        Raises PruneError that names a layer whose inputs are not finite, or cannot be inverted whatever the damping.
        """
        self._last = None
        for owner in list(self._sums):
            sharing = [name for name, other in self._owners.items() if other == owner]
            known = _curvature_of(owner, self._sums.pop(owner))
            if known.damping > DAMPING:
                progress.say(f"{owner}: damping raised to {known.damping:.0%} to invert the inputs' second moments")
            yield sharing, known


def _curvature_of(owner: str, moments: Tensor) -> Curvature:
    if not bool(moments.diagonal().isfinite().all()):
        raise PruneError(
            f"the inputs of {owner} hold NaN or infinity; check the checkpoint's weights, or load it as float32"
        )
    known = curvature(moments)
    if known is None:
        raise PruneError(
            f"the second moments of the inputs of {owner} cannot be inverted, even with their mean added to the "
            "diagonal; give more calibration samples, or set prune.criterion = 'wanda'"
        )
    return known


def unreached(name: str) -> PruneError:
    return PruneError(f"no calibration sample reaches {name}; name it in prune.skip, or give other samples")


def diagonal(known: Curvature) -> Tensor:
    """(in,) on the CPU: U_cc, and infinity for inputs that are always zero, whose weights count for nothing."""
    return known.factor.diagonal().masked_fill(known.dead, torch.inf).cpu()
