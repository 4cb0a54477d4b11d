"""Table B of the quality benchmark: what restoration wins back of what pruning lost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from quality_cells import DENSE, SPARSITY_OF_26_64, Restoration, Setting
from quality_estimates import Estimate, Figures, above, not_below, plain, rows_of, signed, within_one_error
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.config import Criterion

_UNIFORM_26_64 = Setting(pattern="*:64", sparsity=SPARSITY_OF_26_64)
RESTORED: Mapping[str, Setting] = {
    "uniform 60%": Setting(sparsity=0.6),
    "search 60%": Setting(sparsity=0.6, method="evolution"),
    "uniform 70%": Setting(sparsity=0.7),
    "search 70%": Setting(sparsity=0.7, method="evolution"),
    "uniform 59.375%": Setting(sparsity=SPARSITY_OF_26_64),
    "uniform 26:64": _UNIFORM_26_64,
    "search *:64, 59.375%": replace(_UNIFORM_26_64, method="evolution"),
    "uniform 2:4": Setting(pattern="2:4", sparsity=0.5),
}
RESTORED_CRITERIA: Mapping[Criterion, Sequence[str]] = {
    "sparsegpt": tuple(RESTORED),
    "wanda": ("uniform 60%", "uniform 70%", "uniform 2:4"),
}
"""The default, and what SparseLoRA was published with."""
RIVALS = (
    ("search 60%", "uniform 60%"),
    ("search 70%", "uniform 70%"),
    ("search *:64, 59.375%", "uniform 26:64"),
    ("uniform 26:64", "uniform 59.375%"),
)


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
        rivals = [pair for pair in RIVALS if restored.keys() >= set(pair)]
        if not rivals:
            return
        yield "Points above the other policy, paired by seed."
        differences = markdown_table("policies", "pruned", "lora", "sparse_lora")
        for one, other in rivals:
            pairs = zip(_restorations(restored[one]), _restorations(restored[other]), strict=True)
            differences.add_row(f"{one} - {other}", *(signed(figures.difference(*pair)) for pair in pairs))
        yield differences

    def rows(self, figures: Figures) -> Iterator[Row]:
        for criterion in RESTORED_CRITERIA:
            yield from _rows_of_restoration(figures, criterion)
        yield from _rows_of_policies(figures, _restored(DENSE.criterion))


def _rows_of_restoration(figures: Figures, criterion: Criterion) -> Iterator[Row]:
    restored = _restored(criterion)
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


def _rows_of_policies(figures: Figures, restored: Mapping[str, Setting]) -> Iterator[Row]:
    def difference(one: str, other: str, restore: Restoration = "sparse_lora") -> Estimate | None:
        return figures.difference(*(replace(restored[name], restore=restore) for name in (one, other)))

    name = "60%, restored: search not below uniform by two standard errors"
    yield from rows_of(name, difference("search 60%", "uniform 60%"), "points", not_below)
    name = "70%, restored: search above uniform"
    yield from rows_of(name, difference("search 70%", "uniform 70%"), "points", above)
    stages: dict[str, Restoration] = {"unrestored": "none", "restored": "sparse_lora"}
    for stage, restore in stages.items():
        name = f"{stage}: 26:64 below unstructured 59.375% by one standard error at most"
        lost = difference("uniform 59.375%", "uniform 26:64", restore)
        yield from rows_of(name, lost, "points", within_one_error, at_most=True)


def _restored(criterion: Criterion) -> dict[str, Setting]:
    return {name: replace(RESTORED[name], criterion=criterion) for name in RESTORED_CRITERIA[criterion]}


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
