"""Which weights go: statistics of the layers' inputs, scores, patterns, masks."""

from .database import Database, RankedWeights
from .masks import Masks, apply_masks, load_masks, make_masks, masked, save_masks, set_weights
from .stats import Stats, collect_stats

__all__ = [
    "Database",
    "Masks",
    "RankedWeights",
    "Stats",
    "apply_masks",
    "collect_stats",
    "load_masks",
    "make_masks",
    "masked",
    "save_masks",
    "set_weights",
]
