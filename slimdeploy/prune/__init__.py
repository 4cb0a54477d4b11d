"""Which weights go: statistics of the layers' inputs, scores, patterns, masks."""

from .masks import Masks, apply_masks, load_masks, make_masks, masked, save_masks, set_weights
from .stats import Stats, collect_stats

__all__ = [
    "Masks",
    "Stats",
    "apply_masks",
    "collect_stats",
    "load_masks",
    "make_masks",
    "masked",
    "save_masks",
    "set_weights",
]
