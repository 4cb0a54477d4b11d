"""Where packed weights gain nothing on this machine, in words: for whoever exports, and for every report."""

from .artifact import Manifest
from .kernels.library import layout_choice
from .kernels.operators import fallback_note
from .packed import ValueType

_BITS: dict[ValueType, int] = {"int4": 4, "int8": 8, "bf16": 16}
# Smaller matrices stay in a CPU's caches, where memory is not what a product waits for; nor are they measured.
_CACHED_WEIGHTS = 2**20


def missing_gains(manifest: Manifest) -> tuple[str, ...]:
    """A sentence for each gain that an ONNX artifact's zeros do not bring here; none for one that is not packed."""
    if manifest.format != "onnx" or not manifest.is_packed:
        return ()
    values = _values(manifest)
    weights = sum(row["rows"] * row["columns"] for row in manifest.layers)
    stored, dense = sum(row["bytes"] for row in manifest.layers), weights * _BITS[values] // 8
    notes = []
    if stored >= dense:
        notes.append(
            f"At {manifest.sparsity:.0%} sparsity the masks take what the zeros save: {stored:,} bytes packed, "
            f"{dense:,} as plain {values}. Raise search.budget.sparsity."
        )
    return (*notes, *_on_this_machine(manifest, values))


def _values(manifest: Manifest) -> ValueType:
    kind = str(manifest.verification["weights"]).removeprefix("packed-")
    return next(values for values in _BITS if values == kind)


def _on_this_machine(manifest: Manifest, values: ValueType) -> tuple[str, ...]:
    if note := fallback_note():
        return (note,)
    largest = max(row["rows"] * row["columns"] for row in manifest.layers)
    if largest < _CACHED_WEIGHTS:
        return (
            f"The largest matrix has {largest:,} weights and stays in the CPU's caches: zeros save bytes there, but no "
            "time.",
        )
    choice = layout_choice(values, 1 - manifest.sparsity)
    if choice.layout == "dense":
        return (
            f"On this CPU {values} weights are faster with their zeros ({choice.dense_ns:.0f} ns per 1000 weights, "
            f"{choice.sparse_ns:.0f} without): the artifact is smaller on disk, but gains no time or memory here.",
        )
    return ()
