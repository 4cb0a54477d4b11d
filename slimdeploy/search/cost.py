"""What a search cost: policies judged, tokens put through the model, time. Knows no model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cost:
    """of: what was done. evaluations: how often a policy was judged at it. tokens: put forward through the model,
    pictures' included and padding not; what a judgement before has put through is not put through again.
    """

    of: str
    evaluations: int
    tokens: int
    seconds: float


class Ledger:
    """Costs as they arise, by what they were for."""

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {}

    def add(self, of: str, evaluations: int, tokens: int, seconds: float) -> None:
        before = self._costs.get(of, Cost(of, 0, 0, 0.0))
        self._costs[of] = replace(
            before,
            evaluations=before.evaluations + evaluations,
            tokens=before.tokens + tokens,
            seconds=before.seconds + seconds,
        )

    def costs(self) -> tuple[Cost, ...]:
        return tuple(self._costs.values())


def in_words(costs: Iterable[Cost]) -> str:
    """One line: the sum, and how it came about."""
    costs = list(costs)
    evaluations, tokens = sum(cost.evaluations for cost in costs), sum(cost.tokens for cost in costs)
    seconds = sum(cost.seconds for cost in costs)
    parts = ", ".join(map(_part, costs))
    return f"{evaluations:,} evaluations, {_tokens(tokens)} tokens, {_time(seconds)}: {parts}"


def _part(cost: Cost) -> str:
    evaluations = f"{cost.evaluations:,} " if cost.evaluations else ""
    return f"{evaluations}{cost.of} ({_tokens(cost.tokens)}, {_time(cost.seconds)})"


def _tokens(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count:,}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
