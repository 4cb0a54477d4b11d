"""Table C of the quality benchmark: what the parts of the search are worth, and what it costs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from quality_cells import Setting
from quality_estimates import Figures, plain, signed
from results import Row, markdown_table
from rich.table import Table

CRITERION = Setting().criterion
FIXED_ETA = 0.02
"""The norm term is judged at this weight: a chosen one may be 0, and then there would be nothing to compare."""

_FULL, _WITH_NORM, _WITHOUT_NORM = "full, eta auto", f"eta {FIXED_ETA}, with the norm term", "eta 0, without it"


class Ablations:
    """What the norm term and projector evolution are worth to the search."""

    seeds = 3

    def __init__(self, sparsities: Sequence[float]) -> None:
        self._sparsities = sparsities

    def settings(self) -> Iterator[Setting]:
        for sparsity in self._sparsities:
            yield from self._variants(sparsity).values()

    def details(self, figures: Figures) -> Iterator[Table | str]:
        yield (
            f"C. The search without its parts: {CRITERION}, no restoration. Accuracy, %, and points below the full "
            "search."
        )
        table = markdown_table("sparsity", "search", "accuracy", "full search above it")
        for sparsity in self._sparsities:
            variants = self._variants(sparsity)
            full = variants[_FULL]
            for name, setting in variants.items():
                lost = "" if setting == full else signed(figures.difference(full, setting))
                table.add_row(f"{sparsity:.0%}", name, plain(figures.mean(setting)), lost)
        yield table
        yield "The norm term: points that it gains at a fixed weight, and how often auto leaves it out."
        norm_term = markdown_table("sparsity", f"eta {FIXED_ETA} - eta 0", "auto chose eta 0")
        for sparsity in self._sparsities:
            variants = self._variants(sparsity)
            gained = signed(figures.difference(variants[_WITH_NORM], variants[_WITHOUT_NORM]))
            norm_term.add_row(f"{sparsity:.0%}", gained, _times_zero(figures, variants[_FULL]))
        yield norm_term
        yield "What a search costs, mean over seeds; seconds of one core."
        costs = markdown_table("search", "what for", "evaluations", "tokens forward, millions", "seconds")
        for sparsity in self._sparsities:
            for cost in figures.costs(self._variants(sparsity)[_FULL]):
                numbers = (f"{cost.evaluations}", f"{cost.tokens / 1e6:.2f}", f"{cost.seconds:.1f}")
                costs.add_row(f"{CRITERION} {sparsity:.0%}", cost.of, *numbers)
        yield costs

    def rows(self, _: Figures) -> Iterator[Row]:
        """Ablations tell, they promise nothing."""
        yield from ()

    def _variants(self, sparsity: float) -> dict[str, Setting]:
        full = Setting(sparsity=sparsity, method="evolution")
        return {
            "uniform, no search": Setting(sparsity=sparsity),
            _FULL: full,
            _WITH_NORM: replace(full, eta=FIXED_ETA),
            _WITHOUT_NORM: replace(full, eta=0.0),
            "without projector evolution": replace(full, projector=False),
        }


def _times_zero(figures: Figures, setting: Setting) -> str:
    etas = [figure.eta for figure in figures.of(setting).values()]
    return f"with {etas.count(0.0)} of {len(etas)} seeds" if etas else ""
