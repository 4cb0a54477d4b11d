"""The tables of the quality benchmark: which settings each compares, how it prints them, and the goals that they have.

A table is made from whatever has been measured; what is missing stays blank, and its goals are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, get_args

from quality_ablations import Ablations
from quality_cells import Restoration, Setting
from quality_estimates import (
    Estimate,
    Figures,
    above,
    clearly_above,
    not_below,
    plain,
    rows_of,
    signed,
    within_one_error,
)
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.config import Criterion, SearchMethod
from slimdeploy.policy import Layer, Level
from slimdeploy.search.space import stored_bytes

DENSE = Setting()
CRITERIA: Sequence[Criterion] = ("magnitude", "wanda", "atv", "sparsegpt")
METHODS: Sequence[SearchMethod] = ("uniform", "owl", "ecoflap", "evolution")
SPARSITIES = (0.6, 0.7)
SPARSITY_OF_26_64 = 0.59375
UNIFORM_ONLY: Mapping[str, Setting] = {
    "50%": Setting(sparsity=0.5),
    "2:4": Setting(pattern="2:4", sparsity=0.5),
    "26:64": Setting(pattern="*:64", sparsity=SPARSITY_OF_26_64),
}
RESTORED: Mapping[str, Setting] = {
    "uniform 60%": Setting(sparsity=0.6),
    "search 60%": Setting(sparsity=0.6, method="evolution"),
    "uniform 70%": Setting(sparsity=0.7),
    "search 70%": Setting(sparsity=0.7, method="evolution"),
    "uniform 59.375%": Setting(sparsity=SPARSITY_OF_26_64),
    "uniform 26:64": UNIFORM_ONLY["26:64"],
    "search *:64, 59.375%": replace(UNIFORM_ONLY["26:64"], method="evolution"),
    "uniform 2:4": UNIFORM_ONLY["2:4"],
}
RESTORED_CRITERIA: Sequence[Criterion] = ("sparsegpt", "wanda")
"""The default, and what restoration was published with."""
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


class Restored:
    """What restoration wins back, and whether training under the masks beats masking in the end."""

    seeds = 3

    def settings(self) -> Iterator[Setting]:
        yield DENSE
        for criterion in RESTORED_CRITERIA:
            for setting in _restored(criterion).values():
                yield from _restorations(setting)

    def details(self, figures: Figures) -> Iterator[Table | str]:
        for criterion in RESTORED_CRITERIA:
            yield (
                f"B. Accuracy of {criterion} before and after restoration, %; won back: of what pruning lost, by "
                "sparse_lora."
            )
            yield from self._tables(figures, _restored(criterion))

    def _tables(self, figures: Figures, restored: Mapping[str, Setting]) -> Iterator[Table | str]:
        table = markdown_table("policy", "pruned", "lora", "sparse_lora", "sparse_lora - lora", "won back", "of dense")
        for name, setting in restored.items():
            pruned, lora, sparse_lora = _restorations(setting)
            table.add_row(
                name,
                *(plain(figures.mean(each)) for each in (pruned, lora, sparse_lora)),
                signed(figures.difference(sparse_lora, lora)),
                lossless(figures, setting) or plain(won_back(figures, setting)),
                plain(of_dense(figures, setting)),
            )
        yield table
        yield "Points above the other policy, paired by seed."
        differences = markdown_table("policies", "pruned", "lora", "sparse_lora")
        for one, other in (
            ("search 60%", "uniform 60%"),
            ("search 70%", "uniform 70%"),
            ("search *:64, 59.375%", "uniform 26:64"),
            ("uniform 26:64", "uniform 59.375%"),
        ):
            pairs = zip(_restorations(restored[one]), _restorations(restored[other]), strict=True)
            differences.add_row(f"{one} - {other}", *(signed(figures.difference(*pair)) for pair in pairs))
        yield differences

    def rows(self, figures: Figures) -> Iterator[Row]:
        for criterion in RESTORED_CRITERIA:
            yield from self._rows(figures, criterion, _restored(criterion))

    def _rows(self, figures: Figures, criterion: Criterion, restored: Mapping[str, Setting]) -> Iterator[Row]:
        def difference(one: str, other: str, restore: Restoration = "sparse_lora") -> Estimate | None:
            return figures.difference(*(replace(restored[name], restore=restore) for name in (one, other)))

        name = f"{criterion} 60%, restored: search not below uniform by two standard errors"
        yield from rows_of(name, difference("search 60%", "uniform 60%"), "points", not_below)
        name = f"{criterion} 70%, restored: search above uniform"
        yield from rows_of(name, difference("search 70%", "uniform 70%"), "points", above)
        for policy in ("uniform 60%", "uniform 70%"):
            name = f"{criterion}, {policy}: won back by sparse_lora of what pruning lost"
            if reason := lossless(figures, restored[policy]):
                yield Row(name, None, reason, 50, at_most=False)
            else:
                yield from rows_of(name, won_back(figures, restored[policy]), "%", lambda _: 50)
        name = f"{criterion}, uniform 2:4: kept by sparse_lora of the dense accuracy"
        yield from rows_of(name, of_dense(figures, restored["uniform 2:4"]), "%", lambda _: 95)
        for policy, setting in restored.items():
            _, lora, sparse_lora = _restorations(setting)
            name = f"{criterion}, {policy}: sparse_lora above lora at equal steps"
            yield from rows_of(name, figures.difference(sparse_lora, lora), "points", above)
        stages: dict[str, Restoration] = {"unrestored": "none", "restored": "sparse_lora"}
        for stage, restore in stages.items():
            name = f"{criterion}, {stage}: 26:64 below unstructured 59.375% by one standard error at most"
            lost = difference("uniform 59.375%", "uniform 26:64", restore)
            yield from rows_of(name, lost, "points", within_one_error, at_most=True)


def _restored(criterion: Criterion) -> dict[str, Setting]:
    return {name: replace(setting, criterion=criterion) for name, setting in RESTORED.items()}


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


def won_back(figures: Figures, setting: Setting) -> Estimate | None:
    """Percent of what pruning lost, by sparse_lora. None where with some seed it lost nothing."""
    pruned, _, sparse_lora = _restorations(setting)
    if lossless(figures, setting):
        return None

    def share(dense: float, lost: float, restored: float) -> float:
        return 100 * (restored - lost) / (dense - lost)

    return figures.paired(share, DENSE, pruned, sparse_lora)


def lossless(figures: Figures, setting: Setting) -> str:
    """Why there is no share to win back, in words: with some seed pruning alone lost nothing. Empty where there is."""
    pruned, _, sparse_lora = _restorations(setting)
    found = [lost >= dense for dense, lost, _ in figures.accuracies(DENSE, pruned, sparse_lora)]
    return f"not applicable: pruning lost nothing with {sum(found)} of {len(found)} seeds" if any(found) else ""


def of_dense(figures: Figures, setting: Setting) -> Estimate | None:
    """Percent of the dense accuracy, with sparse_lora."""
    return figures.paired(lambda dense, kept: 100 * kept / dense, DENSE, replace(setting, restore="sparse_lora"))


def _restorations(setting: Setting) -> list[Setting]:
    """Pruned only, with plain LoRA, with SparseLoRA."""
    return [replace(setting, restore=method) for method in get_args(Restoration)]


def _columns(methods: Sequence[SearchMethod]) -> list[str]:
    return ["search" if method == "evolution" else method for method in methods]
