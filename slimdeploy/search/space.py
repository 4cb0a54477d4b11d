"""The policies that a search may visit: a level per matrix, never over budget. Pure arithmetic on `slimdeploy.policy`.

Every policy made here costs at most `budget`, in weights kept or in bytes stored, so that a search never has to reject
one. And each keeps at least as many weights of a matrix as it has rows: one that gives nothing is no candidate.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

from ..config import Config
from ..errors import PruneError
from ..packed_tensor import ENCODINGS, smallest_bytes
from ..policy import (
    UNSTRUCTURED,
    Layer,
    Level,
    Policy,
    Values,
    available_levels,
    kept_per_row,
    kept_weights,
    weight_budget,
)

# Distance between the sparsities that a matrix may take where levels are not given by a pattern.
_GRAIN = 1e-4
_SPARSEST = 0.95

Price = Callable[[Layer, Level], int]
"""What a matrix costs at a level, in the unit of the budget."""

_Steps = Sequence[tuple[int, Level]]
"""Levels of one matrix with their costs, the cheapest first."""


def stored_bytes(layer: Layer, level: Level) -> int:
    """Bytes of a packed matrix: mask, values and scales; without a mask where that takes less. values: not ""."""
    encoding = ENCODINGS[f"packed-{level.values}"]
    return smallest_bytes(layer.rows, layer.columns, encoding, level.pattern, kept_weights(layer, level))


@dataclass(frozen=True)
class Space:
    """layers: the matrices that may be pruned. skipped: those left dense, at the level `dense`.

    levels: for each of `values`, the types that survivors may be stored as, dense first and each sparser than the one
    before. budget: what `layers` may cost together.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Layer, ...]
    levels: tuple[Level, ...]
    budget: int
    pattern: str
    cost: Price = kept_weights
    values: tuple[Values, ...] = ("",)

    @property
    def dense(self) -> Level:
        return self.levels[0]

    def spent(self, policy: Policy) -> int:
        return sum(self.cost(layer, policy.levels[layer.name]) for layer in self.layers)

    def fits(self, policy: Policy) -> bool:
        return self.spent(policy) <= self.budget

    def policy(self, level: Level) -> Policy:
        """The same level for all layers that may be pruned, as far as it leaves something of them."""
        levels = {layer.name: self.leaving(layer, level) for layer in self.layers}
        return Policy({**levels, **{layer.name: self.dense for layer in self.skipped}})

    def uniforms(self) -> tuple[Policy, ...]:
        """For each value type that can meet the budget, the least sparse level that does when every layer takes it.

        An unstructured level need not stand among `levels`: rows are whole weights, so 60% may have to be 60.13%.
        """
        zeros = {layer.name: 0.0 for layer in self.layers}
        reach = [values for values in self.values if self.fits(self.policy(self.at_least(1.0, values)))]
        return tuple(self.meet(zeros, values) for values in reach)

    def meet(self, wanted: Mapping[str, float], values: Values = "") -> Policy:
        """These sparsities, all moved by the same amount so that they just meet the budget; other layers stay dense.

        Raises PruneError where even the sparsest levels are too dense.
        """
        layers = [layer for layer in self.layers if layer.name in wanted]

        def moved(steps: int) -> Policy:
            levels = {
                layer.name: self.leaving(layer, self.at_least(wanted[layer.name] + steps * _GRAIN, values))
                for layer in layers
            }
            return Policy({**self.policy(self.dense).levels, **levels})

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

    def at_least(self, sparsity: float, values: Values = "") -> Level:
        """The densest level that is as sparse; the sparsest where none is."""
        if self.pattern == UNSTRUCTURED:
            return Level(round(min(max(sparsity, 0.0), _SPARSEST), 6), 0, values)
        levels = [level for level in self.levels if level.values == values]
        return next((level for level in levels if level.sparsity >= sparsity - 1e-9), levels[-1])

    def leaving(self, layer: Layer, level: Level) -> Level:
        """`level`, or the sparsest of its type that keeps a weight of every row where it keeps none."""
        if kept_per_row(layer.columns, level):
            return level
        if self.pattern == UNSTRUCTURED:
            return replace(level, sparsity=round(1 - 1 / layer.columns, 6))
        levels = [other for other in self.levels if other.values == level.values]
        return next(other for other in reversed(levels) if kept_per_row(layer.columns, other))

    def dearer(self, layer: Layer, level: Level) -> list[Level]:
        """For each value type the cheapest level that costs more than `level`; none above the dearest."""
        cost = self.cost(layer, level)
        more = ([other for price, other in steps if price > cost] for steps in self._steps[layer.rows, layer.columns])
        return [levels[0] for levels in more if levels]

    def cheaper(self, layer: Layer, level: Level) -> list[Level]:
        """For each value type the dearest level that costs less than `level`; none below the cheapest."""
        cost = self.cost(layer, level)
        less = ([other for price, other in steps if price < cost] for steps in self._steps[layer.rows, layer.columns])
        return [levels[-1] for levels in less if levels]

    @cached_property
    def _steps(self) -> Mapping[tuple[int, int], list[_Steps]]:
        """By shape, for each value type. Left out: zeros that save nothing, because a mask costs what they free, and
        levels that keep nothing.
        """
        steps = {}
        for layer in {(layer.rows, layer.columns): layer for layer in self.layers}.values():
            types: list[_Steps] = []
            for values in self.values:
                least: dict[int, Level] = {}
                levels = [level for level in self.levels if level.values == values]
                for level in (level for level in levels if kept_per_row(layer.columns, level)):
                    least.setdefault(self.cost(layer, level), level)
                types.append(sorted(least.items(), key=lambda step: step[0]))
            steps[layer.rows, layer.columns] = types
        return steps

    def has_choice(self) -> bool:
        """Whether any policy but the uniform one is within the budget: a matrix may become cheaper, or dearer."""
        uniform, *others = self.uniforms()
        left = self.budget - self.spent(uniform)

        def may_change(layer: Layer) -> bool:
            level = uniform.levels[layer.name]
            most = self.cost(layer, level) + left
            dearer = any(self.cost(layer, other) <= most for other in self.dearer(layer, level))
            return dearer or bool(self.cheaper(layer, level))

        return bool(others) or any(map(may_change, self.layers))

    def mutate(self, policy: Policy, rng: random.Random) -> Policy:
        """Make a few matrices cheaper, then spend what was freed on random upgrades, first of the others.

        The result is within budget, and no single upgrade would still fit.
        """
        cheapened = rng.sample(self.layers, min(len(self.layers), rng.choice((1, 2, 3, 6, 12))))
        for layer in cheapened:
            for _ in range(rng.choice((1, 1, 2))):
                if lower := self.cheaper(layer, policy.levels[layer.name]):
                    policy = policy.with_level(layer.name, rng.choice(lower))
        others = [layer for layer in self.layers if layer not in cheapened]
        return self.spend(self.spend(policy, others, rng), cheapened, rng)

    def spend(self, policy: Policy, layers: Sequence[Layer], rng: random.Random) -> Policy:
        """Upgrade random ones of `layers`, a level at a time, until no upgrade fits the budget."""
        left = self.budget - self.spent(policy)
        levels = dict(policy.levels)
        open_layers = list(layers)
        while open_layers:
            layer = rng.choice(open_layers)
            paid = self.cost(layer, levels[layer.name])
            affordable = [
                level for level in self.dearer(layer, levels[layer.name]) if self.cost(layer, level) - paid <= left
            ]
            if not affordable:
                open_layers.remove(layer)
                continue
            levels[layer.name] = rng.choice(affordable)
            left -= self.cost(layer, levels[layer.name]) - paid
        return Policy(levels)


def search_space(layers: Sequence[Layer], config: Config) -> Space:
    """The space of a configuration.

    Layers that `prune.skip` names stay dense. A sparsity counts over the others: it says how sparse the part that is
    pruned becomes; bytes count over all, because that is what is stored. Raises PruneError where a glob names no layer,
    nothing is left to prune, or the levels that the method takes cannot meet the budget.
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
    if config.search.budget.bytes:
        space = _space_of_bytes(pruned, skipped, config)
        _require_bytes(space, config)
    else:
        space = _space_of_weights(pruned, skipped, config)
        _require_sparsity(space, config)
    return space


def _space_of_weights(pruned: Sequence[Layer], skipped: Sequence[Layer], config: Config) -> Space:
    pattern = config.prune.pattern
    budget = weight_budget(pruned, config.search.budget.sparsity)
    return Space(tuple(pruned), tuple(skipped), available_levels(pattern, config.search.level_step), budget, pattern)


def _space_of_bytes(pruned: Sequence[Layer], skipped: Sequence[Layer], config: Config) -> Space:
    pattern, values = config.prune.pattern, config.search.values
    levels = [level for each in values for level in available_levels(pattern, config.search.level_step, each)]
    budget = config.search.budget.bytes - sum(stored_bytes(layer, levels[0]) for layer in skipped)
    return Space(tuple(pruned), tuple(skipped), tuple(levels), budget, pattern, stored_bytes, values)


def _require_sparsity(space: Space, config: Config) -> None:
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


def _require_bytes(space: Space, config: Config) -> None:
    left_dense = config.search.budget.bytes - space.budget
    least = left_dense + min(
        space.spent(space.policy(level))
        for level in (*space.levels, *(space.at_least(1.0, values) for values in space.values))
    )
    if least > config.search.budget.bytes:
        raise PruneError(
            f"search.budget.bytes = {config.search.budget.bytes:,} cannot be met: pattern '{space.pattern}' and "
            f"search.values = {list(space.values)} take {least:,} bytes at the least"
            + (f", {left_dense:,} of them for what prune.skip leaves dense" if space.skipped else "")
            + "; raise the budget, or allow narrower values or a sparser pattern"
        )
