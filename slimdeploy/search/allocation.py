"""How sparse each matrix becomes by a formula instead of a search. Knows no torch and no model: names and numbers.

A block is what a tower, or a projector, repeats; what is not repeated is a block by its parent module.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..policy import Layer, Policy, Tower
from .space import Space

OWL_OUTLIER = 5.0
"""M: a weight whose score is more than M times the mean of its block is an outlier."""
_OWL_SPREAD = 0.08
_ECOFLAP_HEADROOM = 0.1


def blocks_of(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Layers by their block, in order: `tower.layers.3` of `tower.layers.3.mlp.fc1`."""
    blocks: dict[str, list[Layer]] = {}
    for layer in layers:
        numbered = re.match(r"(.*?\.\d+)\.", layer.name)
        blocks.setdefault(numbered[1] if numbered else layer.name.rpartition(".")[0], []).append(layer)
    return blocks


def language_only(space: Space) -> Policy:
    """The language model alone is pruned, uniformly, and has to meet the whole budget."""
    return space.meet({layer.name: 0.0 for layer in space.layers if layer.tower == "language"})


def owl(space: Space, sparsity: float, outliers: Mapping[str, float]) -> Policy:
    """Blocks with more outliers keep more (OWL; Yin et al. 2024). outliers: share of outliers by block.

    The formula is about the blocks of one language model, so each tower has its own mean and its own extremes.
    """

    def of_tower(blocks: Sequence[str]) -> list[float]:
        return owl_sparsities([outliers[block] for block in blocks], sparsity)

    return space.meet(_by_tower(space, of_tower))


def owl_sparsities(outliers: Sequence[float], sparsity: float) -> list[float]:
    """Around `sparsity`, 0.16 from end to end; equal where all blocks have equally many outliers."""
    least, most = min(outliers), max(outliers)
    kept = [(each - least) / (most - least or 1) * 2 * _OWL_SPREAD for each in outliers]
    mean = sum(kept) / len(kept)
    return [sparsity - (each - mean) for each in kept]


def ecoflap(space: Space, sparsity: float, scores: Mapping[str, float]) -> Policy:
    """Blocks whose loss moves more with their weights keep more (ECoFLaP; Sung et al. 2024). scores: by block."""
    blocks = blocks_of(space.layers)
    weights = [sum(layer.weights for layer in layers) for layers in blocks.values()]
    found = ecoflap_sparsities([scores[block] for block in blocks], weights, sparsity)
    by_block = dict(zip(blocks, found, strict=True))
    return space.meet({layer.name: by_block[block] for block, layers in blocks.items() for layer in layers})


def ecoflap_sparsities(scores: Sequence[float], weights: Sequence[int], sparsity: float) -> list[float]:
    """No block is sparser than `sparsity` + 0.1; what else may be kept goes to blocks in proportion to their scores.

    weights: of each block. A block that is full leaves the rest to the others.
    """
    floor = 1 - min(sparsity + _ECOFLAP_HEADROOM, 1)
    kept = [floor * count for count in weights]
    left = (1 - sparsity) * sum(weights) - sum(kept)
    waiting = [i for i, score in enumerate(scores) if score > 0]
    while waiting and left > 1e-6 * sum(weights):
        share = left / sum(scores[i] for i in waiting)
        for i in waiting:
            added = min(share * scores[i], weights[i] - kept[i])
            kept[i] += added
            left -= added
        waiting = [i for i in waiting if not math.isclose(kept[i], weights[i])]
    return [1 - each / count for each, count in zip(kept, weights, strict=True)]


def _by_tower(space: Space, formula: Callable[[Sequence[str]], Sequence[float]]) -> dict[str, float]:
    """Sparsities by layer, from a formula for the blocks of a tower."""
    blocks = blocks_of(space.layers)
    towers: dict[Tower, list[str]] = {}
    for block, layers in blocks.items():
        towers.setdefault(layers[0].tower, []).append(block)
    return {
        layer.name: sparsity
        for names in towers.values()
        for block, sparsity in zip(names, formula(names), strict=True)
        for layer in blocks[block]
    }
