"""Which weights go: statistics of the layers' inputs, scores, patterns, masks; and what becomes of those that stay."""

from .blockwise import Pruning, prune_blockwise
from .database import Database, RankedWeights
from .masks import Masks, apply_masks, load_masks, make_masks, save_masks, set_weights
from .pruning import CHECKPOINT, Pruned, prune, prune_streamed
from .solved import SolvedWeights, dense_curvatures, solved_bytes
from .stats import Stats, collect_stats

__all__ = [
    "CHECKPOINT",
    "Database",
    "Masks",
    "Pruned",
    "Pruning",
    "RankedWeights",
    "SolvedWeights",
    "Stats",
    "apply_masks",
    "collect_stats",
    "dense_curvatures",
    "load_masks",
    "make_masks",
    "prune",
    "prune_blockwise",
    "prune_streamed",
    "save_masks",
    "set_weights",
    "solved_bytes",
]
