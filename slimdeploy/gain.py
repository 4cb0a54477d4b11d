"""Where packed weights gain nothing on this machine, in words: for whoever exports, and for every report."""

from collections.abc import Sequence

from .artifact import Manifest
from .kernels.operators import fallback_note
from .layouts import held, packed_matrices
from .packed_description import Description
from .packed_tensor import dense_bytes


def missing_gains(manifest: Manifest) -> tuple[str, ...]:
    """A sentence for each gain that an artifact's zeros do not bring here; none for one that is not packed."""
    matrices = packed_matrices(manifest)
    if not matrices:
        return ()
    notes = []
    stored = sum(row["bytes"] for row in manifest.layers)
    dense = sum(dense_bytes(matrix.rows, matrix.columns, matrix.encoding) for matrix in matrices)
    # Where zeros and types compete for a budget, dense was a choice.
    if stored >= dense and manifest.verification["weights"] != "packed":
        notes.append(
            f"At {manifest.sparsity:.0%} sparsity the masks would take what the zeros save: the matrices are stored "
            f"with their zeros, in {stored:,} bytes. Raise search.budget.sparsity."
        )
    return (*notes, *_on_this_machine(matrices))


def _on_this_machine(matrices: Sequence[Description]) -> tuple[str, ...]:
    if note := fallback_note():
        return (note,)
    found = held(matrices)
    if found and all(each.choice is None for each in found):
        largest = max(matrix.rows * matrix.columns for each in found for matrix in each.matrices)
        return (
            f"The largest pruned matrix has {largest:,} weights and stays in the CPU's caches: zeros save bytes there, "
            "but no time.",
        )
    dense = [each for each in found if each.dense]
    if dense:
        count = sum(len(each.matrices) for each in dense)
        return (
            f"On this CPU {count} of the {len(matrices)} packed matrices are faster with their zeros: they are smaller "
            f"on disk, but gain no time or memory ({'; '.join(map(str, dense))}).",
        )
    return ()
