"""How packed matrices lie in memory on this machine, with their zeros or without, in words. Knows no torch."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from .artifact import Manifest
from .kernels.library import WORTH_MEASURING, LayoutChoice, layout_choice
from .packed import ValueType
from .packed_description import Description
from .packed_tensor import ALL_KEPT, ENCODINGS, dense_bytes


@dataclass(frozen=True)
class Held:
    """Packed matrices of one type of value that lie in memory alike.

    choice: None where nothing was measured, because they are small.
    """

    choice: LayoutChoice | None
    matrices: tuple[Description, ...]

    @property
    def values(self) -> ValueType:
        return self.matrices[0].encoding.values

    @property
    def how(self) -> str:
        """In words."""
        if self.choice is None:
            return f"held sparse in memory (below {WORTH_MEASURING:,} weights nothing is measured)"
        return str(self.choice)

    @property
    def dense(self) -> bool:
        return self.choice is not None and self.choice.layout == "dense"

    @property
    def log_level(self) -> int:
        """A fallback is a warning."""
        return logging.WARNING if self.dense else logging.INFO

    def __str__(self) -> str:
        pruned = sorted(1 - _kept(matrix) for matrix in self.matrices)
        least, most = f"{pruned[0]:.0%}", f"{pruned[-1]:.0%}"
        share = least if least == most else f"{least} to {most}"
        return f"packed {self.values} weights, {share} pruned: {self.how}"


def packed_matrices(manifest: Manifest) -> list[Description]:
    """The prunable matrices of an artifact as they are stored; none where it is not packed."""
    if not manifest.is_packed:
        return []
    weights = str(manifest.verification["weights"])
    described = []
    for row in manifest.layers:
        rows, columns = row["rows"], row["columns"]
        encoding = ENCODINGS[f"packed-{row['values']}" if weights == "packed" else weights]
        # Stored with a mask where that takes less, whatever the policy's pattern is.
        masked = row["bytes"] < dense_bytes(rows, columns, encoding)
        pattern, kept = (row["pattern"], row["kept"]) if masked else (ALL_KEPT, rows * columns)
        described.append(Description(rows, columns, encoding, pattern, kept))
    return described


def held(matrices: Iterable[Description]) -> list[Held]:
    """Those that have a mask, by the choices made for them here. Measures what was not measured before."""
    alike: dict[tuple[ValueType, LayoutChoice | None], list[Description]] = {}
    for matrix in matrices:
        if matrix.pattern != ALL_KEPT:
            alike.setdefault((matrix.encoding.values, _choice(matrix)), []).append(matrix)
    return [Held(choice, tuple(found)) for (_, choice), found in alike.items()]


def _choice(matrix: Description) -> LayoutChoice | None:
    if matrix.rows * matrix.columns < WORTH_MEASURING:
        return None
    return layout_choice(matrix.encoding, _kept(matrix))


def _kept(matrix: Description) -> float:
    return matrix.kept / (matrix.rows * matrix.columns)
