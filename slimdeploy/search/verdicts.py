"""J of policies, from losses that a judge is asked for once. Knows no model and no search.

J(policy) = divergence + cross-entropy + eta · norm term, over the samples of a stage and of those before it.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate

from ..policy import Policy
from .cost import Ledger
from .fitness import Judge, Loss
from .journal import Journal

_Key = tuple[int, object]


@dataclass(frozen=True)
class Scored:
    """Losses of one policy on the parts of the samples that it was judged on, and its norm term."""

    losses: tuple[Loss, ...]
    norm_term: float


class Verdicts:
    """A fitness for `evolve`: remembers what the judge said of a policy, for each version of the judge.

    name: of the samples, in the journal and in the ledger. stages: how many samples each looks at, whole parts of the
    judge's; those of the stage before are not judged again. eta may be changed at any time.
    """

    def __init__(self, name: str, judge: Judge, stages: Sequence[int], journal: Journal, ledger: Ledger) -> None:
        self.eta = 0.0
        self._name, self._judge, self._stages = name, judge, stages
        self._journal, self._ledger = journal, ledger
        self._known: dict[_Key, Scored] = {}
        self._costs = [f"on {count} {name} samples" for count in stages]
        for of in self._costs:
            ledger.add(of, 0, 0, 0.0)

    @property
    def samples(self) -> Sequence[int]:
        """Of each part."""
        return self._judge.samples

    def __call__(self, policies: Sequence[Policy], stage: int = -1) -> list[float]:
        end = [*accumulate(self._judge.samples)].index(self._stages[stage]) + 1
        waiting: dict[int, dict[object, Policy]] = {}
        for policy in policies:
            known = self._known.get(self._key(policy))
            start = len(known.losses) if known else 0
            if start < end:
                waiting.setdefault(start, {})[policy.key()] = policy
        for start, group in waiting.items():
            for policy, scored, seconds in self._found(list(group.values()), range(start, end)):
                self._add(policy, scored)
                self._ledger.add(self._costs[stage], 1, sum(self._judge.tokens[start:end]), seconds)
        return [self._objective(self._known[self._key(policy)], end) for policy in policies]

    def complete(self) -> list[list[Scored]]:
        """What was judged on all samples; apart for each version of the judge, because their losses do not compare."""
        versions: dict[int, list[Scored]] = {}
        for (version, _), scored in self._known.items():
            if len(scored.losses) == len(self._judge.samples):
                versions.setdefault(version, []).append(scored)
        return list(versions.values())

    def _found(self, policies: Sequence[Policy], parts: range) -> Iterator[tuple[Policy, Scored, float]]:
        """What policies are worth on these parts and how many seconds it took, out of the journal or by the judge."""
        unknown = []
        for policy in policies:
            noted = self._journal.recall(self._entry(policy, parts))
            if noted is None:
                unknown.append(policy)
            else:
                losses = tuple(Loss(**loss) for loss in noted["losses"])
                yield policy, Scored(losses, noted["norm_term"]), noted["seconds"]
        if not unknown:
            return
        began = time.perf_counter()
        for policy, found in zip(unknown, self._judge.losses(unknown, parts), strict=True):
            # Noted as well, because without the masks it has to be found out again from the weights.
            scored = Scored(tuple(found), self._judge.norm_term(policy))
            seconds = time.perf_counter() - began
            self._journal.note(self._entry(policy, parts), asdict(scored) | {"seconds": seconds})
            yield policy, scored, seconds
            began = time.perf_counter()

    def _entry(self, policy: Policy, parts: range) -> str:
        return f"{self._name} {parts}, version {self._judge.version}, {policy.key()}"

    def _key(self, policy: Policy) -> _Key:
        return self._judge.version, policy.key()

    def _add(self, policy: Policy, scored: Scored) -> None:
        key = self._key(policy)
        before = self._known[key].losses if key in self._known else ()
        self._known[key] = replace(scored, losses=(*before, *scored.losses))

    def _objective(self, scored: Scored, end: int) -> float:
        """A policy that gives no finite number is worth infinitely little."""
        loss = mean_loss(scored.losses[:end], self._judge.samples[:end])
        objective = loss.divergence + loss.answers + self.eta * scored.norm_term
        return objective if math.isfinite(objective) else math.inf


def mean_loss(losses: Sequence[Loss], samples: Sequence[int]) -> Loss:
    """Over parts of unequal size."""
    total = sum(samples)
    weighted = list(zip(losses, samples, strict=True))
    return Loss(
        sum(loss.divergence * count for loss, count in weighted) / total,
        sum(loss.answers * count for loss, count in weighted) / total,
    )
