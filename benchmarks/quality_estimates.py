"""Means over seeds, and differences that are paired by seed, each with its standard error. In percent and points."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from quality_cells import Cell, Figure, Setting
from results import Row

from slimdeploy.search.cost import Cost, Ledger

CLEAR = 2
"""Standard errors from which on a difference is called one."""


@dataclass(frozen=True)
class Estimate:
    """error: standard error of the mean, 0 where nothing varies; NaN for a single seed."""

    mean: float
    error: float
    count: int

    @property
    def verdict(self) -> str:
        """Of a difference, in words; none for a single seed."""
        if math.isnan(self.error):
            return ""
        if abs(self.mean) <= CLEAR * self.error or self.mean == 0:
            return "no clear difference"
        return "better" if self.mean > 0 else "worse"


def estimate(values: Sequence[float]) -> Estimate:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(fmean(values), error, len(values))


@dataclass(frozen=True)
class Figures:
    """What has been measured so far. Where a figure is missing, there is no estimate."""

    by_cell: Mapping[Cell, Figure]

    def of(self, setting: Setting) -> dict[int, Figure]:
        """By seed."""
        return {cell.seed: figure for cell, figure in self.by_cell.items() if cell.setting == setting}

    def mean(self, setting: Setting, value: Callable[[Figure], float] | None = None) -> Estimate | None:
        """Of the accuracy in percent, unless `value` takes something else from a figure."""
        figures = self.of(setting)
        if not figures:
            return None
        found = estimate([value(each) if value else 100 * each.accuracy for each in figures.values()])
        return found if setting.has_seeds else Estimate(found.mean, 0.0, 1)

    def accuracies(self, *settings: Setting) -> list[tuple[float, ...]]:
        """In percent, for every seed that all have; what has no seeds goes with every seed."""
        found = [self.of(setting) for setting in settings]
        seeds = set.intersection(
            *(set(each) for each, setting in zip(found, settings, strict=True) if setting.has_seeds)
        )
        if not all(found):
            return []
        return [
            tuple(
                100 * each[seed if setting.has_seeds else 0].accuracy
                for each, setting in zip(found, settings, strict=True)
            )
            for seed in sorted(seeds)
        ]

    def paired(self, value: Callable[..., float], *settings: Setting) -> Estimate | None:
        """Of what `value` makes of the accuracies of one seed."""
        accuracies = self.accuracies(*settings)
        return estimate([value(*each) for each in accuracies]) if accuracies else None

    def difference(self, setting: Setting, other: Setting) -> Estimate | None:
        """Points by which `setting` is above `other`."""
        return self.paired(lambda one, two: one - two, setting, other)

    def costs(self, setting: Setting) -> list[Cost]:
        """What a search spent, for each thing that it spent on and together: means over seeds, rounded."""
        searches = [figure.costs for figure in self.of(setting).values()]
        ledger = Ledger()
        for cost in (cost for costs in searches for cost in costs):
            for of in (cost.of, "together"):
                ledger.add(of, cost.evaluations, cost.tokens, cost.seconds)
        spent = sorted(ledger.costs(), key=lambda cost: cost.of == "together")
        count = len(searches)
        return [
            Cost(cost.of, round(cost.evaluations / count), round(cost.tokens / count), cost.seconds / count)
            for cost in spent
        ]


def plain(found: Estimate | None) -> str:
    """An accuracy with its standard error."""
    if found is None:
        return ""
    return (
        f"{found.mean:.2f}" if math.isnan(found.error) or not found.error else f"{found.mean:.2f} ± {found.error:.2f}"
    )


def signed(found: Estimate | None) -> str:
    """A difference with its standard error, and what it means in words."""
    if found is None:
        return ""
    if math.isnan(found.error):
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ± {found.error:.2f}, {found.verdict}"


def rows_of(
    name: str, found: Estimate | None, unit: str, goal: Callable[[Estimate], float], *, at_most: bool = False
) -> list[Row]:
    """One row, or none before two seeds are measured. goal: as it follows from the estimate."""
    if found is None or math.isnan(found.error):
        return []
    return [Row(name, found.mean, f"{unit} ± {found.error:.2f}", goal(found), at_most)]


def not_below(found: Estimate) -> float:
    """Goal of a difference that may be chance where it is below zero."""
    return -CLEAR * found.error


def clearly_above(found: Estimate) -> float:
    return CLEAR * found.error


def above(_: Estimate) -> float:
    """However little; accuracies of a few thousand questions differ by more than this, or not at all."""
    return 0.001


def within_one_error(found: Estimate) -> float:
    return found.error
