"""Which weight of the norm term ranks policies best, from losses that are known already. Knows no model.

J on all parts of the search samples but one is to rank the policies as their divergence on that part does. SlimLLaVA
leaves eta open; searching once for every eta would cost as much as many searches, and this costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .verdicts import Scored, Verdicts, mean_loss

ETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
# Fewer say nothing about an order.
_FEWEST = 3


@dataclass(frozen=True)
class Ranking:
    """correlation: Spearman's, of J with the held-out divergence; mean over parts and groups of policies.

    uncertainty: standard error of how far that is below the best eta's; 0 for the best.
    """

    eta: float
    correlation: float
    uncertainty: float


class EtaChoice:
    """Gives verdicts their eta: a number at once, "auto" after some generations, from what is known by then."""

    def __init__(self, eta: float | Literal["auto"], after: int, verdicts: Sequence[Verdicts]) -> None:
        """after: generations, at least one. verdicts: on the search samples first, which eta is chosen on."""
        self.rankings: tuple[Ranking, ...] = ()
        self.after = after if eta == "auto" else 0
        self._generation = 0
        self._verdicts = verdicts
        if eta != "auto":
            self._set(eta)

    def choose(self) -> bool:
        """Called once a generation; True when eta changed."""
        self._generation += 1
        if self._generation != self.after:
            return False
        known = self._verdicts[0]
        before = known.eta
        self.rankings = rankings(known.complete(), known.samples)
        self._set(best_eta(self.rankings))
        return known.eta != before

    def _set(self, eta: float) -> None:
        for verdicts in self._verdicts:
            verdicts.eta = eta


def rankings(groups: Sequence[Sequence[Scored]], samples: Sequence[int]) -> tuple[Ranking, ...]:
    """For every eta of the grid; none where there are too few policies, or a single part.

    groups: policies whose losses compare with one another. samples: of each part.
    """
    groups = [group for group in groups if len(group) >= _FEWEST]
    if not groups or len(samples) < 2:
        return ()
    weights = np.array([len(group) for group in groups for _ in samples]) / sum(map(len, groups)) / len(samples)
    found = [
        np.array([_held_out(group, samples, part, eta) for group in groups for part in range(len(samples))])
        for eta in ETAS
    ]
    means = [float(weights @ correlations) for correlations in found]
    best = found[int(np.argmax(means))]
    errors = [float(np.sqrt(weights**2 @ (best - each - weights @ (best - each)) ** 2)) for each in found]
    return tuple(Ranking(*each) for each in zip(ETAS, means, errors, strict=True))


def best_eta(found: Sequence[Ranking]) -> float:
    """The smallest that is within one standard error of the best; 0 where nothing was found.

    The largest of several means is partly luck, and the loss alone is the plainer objective.
    """
    best = max((ranking.correlation for ranking in found), default=0.0)
    return next((ranking.eta for ranking in found if best - ranking.correlation <= ranking.uncertainty), 0.0)


def _held_out(group: Sequence[Scored], samples: Sequence[int], part: int, eta: float) -> float:
    """Of J on all parts but `part` with the divergence on that part."""
    others = [i for i in range(len(samples)) if i != part]
    objectives = []
    for scored in group:
        loss = mean_loss([scored.losses[i] for i in others], [samples[i] for i in others])
        objectives.append(loss.divergence + loss.answers + eta * scored.norm_term)
    return spearman(objectives, [scored.losses[part].divergence for scored in group])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of the ranks, -1 to 1; equal values share their mean rank. 0 where all values of one are equal."""
    ranks_x, ranks_y = _ranks(x), _ranks(y)
    ranks_x -= ranks_x.mean()
    ranks_y -= ranks_y.mean()
    scale = float(np.sqrt((ranks_x @ ranks_x) * (ranks_y @ ranks_y)))
    return float(ranks_x @ ranks_y) / scale if scale else 0.0


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
