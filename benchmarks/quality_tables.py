"""The tables of the quality benchmark: which settings each compares, how it prints them, and the goals that they have.

A table is made from whatever has been measured; what is missing stays blank, and its goals are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from quality_ablations import Ablations
from quality_cells import DENSE, SPARSITY_OF_26_64, Setting
from quality_estimates import (
    Estimate,
    Figures,
    clearly_above,
    not_below,
    plain,
    rows_of,
    signed,
)
from quality_restored import Restored
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.config import Criterion, SearchMethod
from slimdeploy.policy import Layer, Level
from slimdeploy.search.space import stored_bytes

CRITERIA: Sequence[Criterion] = ("magnitude", "wanda", "atv", "sparsegpt")
METHODS: Sequence[SearchMethod] = ("uniform", "owl", "ecoflap", "evolution")
SPARSITIES = (0.6, 0.7)
UNIFORM_ONLY: Mapping[str, Setting] = {
    "50%": Setting(sparsity=0.5),
    "2:4": Setting(pattern="2:4", sparsity=0.5),
    "26:64": Setting(pattern="*:64", sparsity=SPARSITY_OF_26_64),
}
BITS_OF_THE_SMALLEST = 2.5
_JOINT = "joint search"


class Part(Protocol):
    """One of the tables. seeds: for each of its settings."""

    seeds: int

    def settings(self) -> Iterator[Setting]: ...
    def details(self, figures: Figures, /) -> Iterator[Table | str]: ...
    def rows(self, figures: Figures, /) -> Iterator[Row]: ...


def parts(layers: Sequence[Layer]) -> dict[str, Part]:
    """By the letter that `--only` takes. layers: the model's prunable matrices."""
    return {"A": Unrestored(), "B": Restored(), "C": Ablations(SPARSITIES), "D": EqualBytes(layers)}


class Unrestored:
    """Which criterion, and who shares out the sparsity."""

    seeds = 5

    def settings(self) -> Iterator[Setting]:
        yield DENSE
        for sparsity in SPARSITIES:
            for criterion in CRITERIA:
                for method in METHODS:
                    yield Setting(criterion, sparsity=sparsity, method=method)
        for criterion in CRITERIA:
            yield from (replace(setting, criterion=criterion) for setting in UNIFORM_ONLY.values())

    def details(self, figures: Figures) -> Iterator[Table | str]:
        yield f"A. Accuracy without restoration, %; the dense model has {plain(figures.mean(DENSE))}."
        accuracies = markdown_table("criterion", "sparsity", *_columns(METHODS))
        differences = markdown_table("criterion", "sparsity", *(f"{name} - uniform" for name in _columns(METHODS[1:])))
        for sparsity in SPARSITIES:
            for criterion in CRITERIA:
                uniform, *others = (Setting(criterion, sparsity=sparsity, method=method) for method in METHODS)
                first = (criterion, f"{sparsity:.0%}")
                accuracies.add_row(*first, *(plain(figures.mean(setting)) for setting in (uniform, *others)))
                differences.add_row(*first, *(signed(figures.difference(setting, uniform)) for setting in others))
        yield accuracies
        yield "Points above uniform, paired by seed."
        yield differences
        yield "Uniform only."
        patterns = markdown_table("criterion", *UNIFORM_ONLY)
        for criterion in CRITERIA:
            settings = (replace(setting, criterion=criterion) for setting in UNIFORM_ONLY.values())
            patterns.add_row(criterion, *(plain(figures.mean(setting)) for setting in settings))
        yield patterns

    def rows(self, figures: Figures) -> Iterator[Row]:
        for sparsity in SPARSITIES:
            for criterion in CRITERIA:
                uniform = Setting(criterion, sparsity=sparsity)
                gained = figures.difference(replace(uniform, method="evolution"), uniform)
                name = f"{criterion} {sparsity:.0%}, unrestored: search above uniform by two standard errors"
                yield from rows_of(name, gained, "points", clearly_above)


class EqualBytes:
    """Pruning or quantisation, at the same size."""

    seeds = 3

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._int8, self._int4 = (
            sum(stored_bytes(layer, Level(0.0, 0, values)) for layer in layers) for values in ("int8", "int4")
        )
        self._weights = sum(layer.weights for layer in layers)
        # Three bits instead of the four of an integer; the scales stay.
        self._int3 = self._int4 - self._weights // 8
        self._smallest = int(BITS_OF_THE_SMALLEST * self._weights / 8)

    def settings(self) -> Iterator[Setting]:
        yield DENSE
        yield self._reference()
        for choices in self._sizes().values():
            yield from choices.values()

    def details(self, figures: Figures) -> Iterator[Table | str]:
        reference = plain(figures.mean(self._reference()))
        yield (
            f"D. Equal bytes: {DENSE.criterion}, no restoration. Accuracy, %; dense has {plain(figures.mean(DENSE))}, "
            f"and as dense int8, in {self._int8 / 1e6:.3f} MB, {reference}."
        )
        table = markdown_table("size of", "MB", "bits a weight", "choice", "sparsity", "accuracy", f"{_JOINT} above it")
        for size, choices in self._sizes().items():
            for name, setting in choices.items():
                # What int3 would take is reckoned; it is no type of the packed format.
                size_bytes = Estimate(self._int3, 0, 1) if setting.int3 else figures.mean(setting, lambda f: f.bytes)
                sparsity = figures.mean(setting, lambda figure: 100 * figure.sparsity)
                gained = "" if name == _JOINT else signed(figures.difference(choices[_JOINT], setting))
                table.add_row(
                    size,
                    f"{size_bytes.mean / 1e6:.3f}" if size_bytes else "",
                    f"{8 * size_bytes.mean / self._weights:.2f}" if size_bytes else "",
                    name,
                    f"{sparsity.mean:.1f}%" if sparsity else "",
                    plain(figures.mean(setting)),
                    gained,
                )
        yield table

    def rows(self, figures: Figures) -> Iterator[Row]:
        for size, choices in self._sizes().items():
            found = {name: figures.mean(setting) for name, setting in choices.items() if name != _JOINT}
            single = {name: each.mean for name, each in found.items() if each}
            if len(single) < len(found):
                continue
            best = max(single, key=single.__getitem__)
            gained = figures.difference(choices[_JOINT], choices[best])
            name = f"size of {size}: joint search not below the best single choice, {best}, by two standard errors"
            yield from rows_of(name, gained, "points", not_below)

    def _reference(self) -> Setting:
        return Setting(bytes=self._int8, values=("int8",))

    def _sizes(self) -> dict[str, dict[str, Setting]]:
        def sparse(size: int) -> dict[str, Setting]:
            return {
                "sparse int8, uniform": Setting(bytes=size, values=("int8",)),
                "sparse int4, uniform": Setting(bytes=size, values=("int4",)),
                _JOINT: Setting(bytes=size, values=("int8", "int4"), method="evolution"),
            }

        of_int4 = sparse(self._int4)
        # At this size the least sparse int4 has no zeros.
        of_int4["dense int4"] = of_int4.pop("sparse int4, uniform")
        return {
            "dense int4": of_int4,
            "dense int3": {"dense int3": Setting(int3=True), **sparse(self._int3)},
            f"{BITS_OF_THE_SMALLEST} bits a weight": sparse(self._smallest),
        }


def _columns(methods: Sequence[SearchMethod]) -> list[str]:
    return ["search" if method == "evolution" else method for method in methods]
