"""Which weights go: statistics of the layers' inputs, scores, patterns, masks; and what becomes of those that stay."""

from .blockwise import prune_blockwise
from .database import Database, RankedWeights
from .masks import (
    Masks,
    apply_masks,
    load_masks,
    load_weights,
    make_masks,
    masked,
    save_masks,
    save_weights,
    set_weights,
)
from .stats import Stats, collect_stats

__all__ = [
    "Database",
    "Masks",
    "RankedWeights",
    "Stats",
    "apply_masks",
    "collect_stats",
    "load_masks",
    "load_weights",
    "make_masks",
    "masked",
    "prune_blockwise",
    "save_masks",
    "save_weights",
    "set_weights",
]
