"""The policies that a search may visit: a level per matrix, never over budget. Pure arithmetic on `slimdeploy.policy`.

Every policy made here keeps at most `budget` weights, so that a search never has to reject one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..config import Config
from ..errors import PruneError
from ..policy import DENSE, UNSTRUCTURED, Layer, Level, Policy, available_levels, kept_weights, weight_budget

# Distance between the sparsities that a matrix may take where levels are not given by a pattern.
_GRAIN = 1e-4
_SPARSEST = 0.95


@dataclass(frozen=True)
class Space:
    """layers: the matrices that may be pruned. skipped: those left dense, which the budget does not count.

    levels: dense first, each sparser than the one before. budget: weights that `layers` may keep together.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Layer, ...]
    levels: tuple[Level, ...]
    budget: int
    pattern: str

    def fits(self, policy: Policy) -> bool:
        return policy.kept(self.layers) <= self.budget

    def policy(self, level: Level) -> Policy:
        """The same level for all layers that may be pruned."""
        return Policy({**{layer.name: level for layer in self.layers}, **{layer.name: DENSE for layer in self.skipped}})

    def uniform(self) -> Policy:
        """The least sparse level that meets the budget when every layer takes it.

        An unstructured level need not stand among `levels`: rows are whole weights, so 60% may have to be 60.13%.
        """
        return self.meet({layer.name: 0.0 for layer in self.layers})

    def meet(self, wanted: Mapping[str, float]) -> Policy:
        """These sparsities, all moved by the same amount so that they just meet the budget; other layers stay dense.

        Raises PruneError where even the sparsest levels are too dense.
        """

        def moved(steps: int) -> Policy:
            levels = {name: self.at_least(sparsity + steps * _GRAIN) for name, sparsity in wanted.items()}
            return Policy({**self.policy(DENSE).levels, **levels})

        too_dense, enough = -round(1 / _GRAIN), round(1 / _GRAIN)
        if not self.fits(moved(enough)):
            raise PruneError(
                f"the budget cannot be met by the {len(wanted)} matrices that search.method prunes, even at their "
                "sparsest; lower search.budget.sparsity or take another method"
            )
        while enough - too_dense > 1:
            middle = (too_dense + enough) // 2
            if self.fits(moved(middle)):
                enough = middle
            else:
                too_dense = middle
        return moved(enough)

    def at_least(self, sparsity: float) -> Level:
        """The densest level that is as sparse; the sparsest where none is."""
        if self.pattern == UNSTRUCTURED:
            return Level(round(min(max(sparsity, 0.0), _SPARSEST), 6))
        return next((level for level in self.levels if level.sparsity >= sparsity - 1e-9), self.levels[-1])

    def richer(self, level: Level) -> Level | None:
        """The next level that keeps more weights; None above the first."""
        return next((other for other in reversed(self.levels) if other.sparsity < level.sparsity), None)

    def cheaper(self, level: Level) -> Level | None:
        """The next level that keeps fewer weights; None below the last."""
        return next((other for other in self.levels if other.sparsity > level.sparsity), None)

    def mutate(self, policy: Policy, rng: random.Random) -> Policy:
        """Make a few matrices cheaper, then spend what was freed on random upgrades of the others.

        The result is within budget, and no single upgrade of another matrix would still fit.
        """
        cheapened = rng.sample(self.layers, min(len(self.layers), rng.choice((1, 2, 3, 6, 12))))
        for layer in cheapened:
            for _ in range(rng.choice((1, 1, 2))):
                lower = self.cheaper(policy.levels[layer.name])
                policy = policy.with_level(layer.name, lower) if lower else policy
        others = [layer for layer in self.layers if layer not in cheapened]
        return self.spend(policy, others or list(self.layers), rng)

    def spend(self, policy: Policy, layers: Sequence[Layer], rng: random.Random) -> Policy:
        """Upgrade random ones of `layers`, a level at a time, until no upgrade fits the budget."""
        left = self.budget - policy.kept(self.layers)
        levels = dict(policy.levels)
        open_layers = list(layers)
        while open_layers:
            layer = rng.choice(open_layers)
            higher = self.richer(levels[layer.name])
            price = kept_weights(layer, higher) - kept_weights(layer, levels[layer.name]) if higher else left + 1
            if higher is None or price > left:
                open_layers.remove(layer)
                continue
            levels[layer.name] = higher
            left -= price
        return Policy(levels)


def search_space(layers: Sequence[Layer], config: Config) -> Space:
    """The space of a configuration.

    Layers that `prune.skip` names stay dense, and the budget counts over the others: it says how sparse the part that
    is pruned becomes. Raises PruneError where a glob names no layer, nothing is left to prune, or the levels that the
    method takes cannot meet the budget.
    """
    for glob in config.prune.skip:
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            raise PruneError(f"prune.skip = '{glob}' names no layer; a layer's name is such as {layers[0].name}")
    skipped = [layer for layer in layers if any(fnmatchcase(layer.name, glob) for glob in config.prune.skip)]
    pruned = [layer for layer in layers if layer not in skipped]
    if not pruned:
        raise PruneError(
            "prune.skip names every layer, so that nothing is left to prune; set search.budget.sparsity = 0"
        )
    pattern, sparsity = config.prune.pattern, config.search.budget.sparsity
    levels = available_levels(pattern, config.search.level_step)
    space = Space(tuple(pruned), tuple(skipped), levels, weight_budget(pruned, sparsity), pattern)
    _require_reach(space, config)
    return space


def _require_reach(space: Space, config: Config) -> None:
    last = space.policy(space.levels[-1])
    # What the uniform policy may take, where the levels of the evolution do not bind it.
    sparsest = space.policy(Level(config.prune.highest_sparsity)) if space.pattern == UNSTRUCTURED else last
    sparsity = config.search.budget.sparsity
    if not space.fits(sparsest):
        raise PruneError(
            f"search.budget.sparsity = {sparsity} cannot be met: pattern '{space.pattern}' removes at most "
            f"{sparsest.sparsity(space.layers):.4f} of the weights; lower the budget or take another prune.pattern"
        )
    if config.search.method == "evolution" and not space.fits(last):
        raise PruneError(
            f"search.budget.sparsity = {sparsity} cannot be met: with search.level_step = {config.search.level_step} "
            f"the sparsest level removes {last.sparsity(space.layers):.4f} of the weights; set a smaller "
            "search.level_step"
        )
