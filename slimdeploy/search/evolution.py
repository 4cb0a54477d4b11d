"""An evolutionary search over policies, behind a function that judges them. Knows no torch and no model.

Offspring are judged in stages, as in EvoPress (Sieberling et al. 2024): all of them on few samples, the better half of
those that are left on more, until the last stage decides on all samples who survives, the parents among them.
Deterministic by seed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..policy import Policy
from .space import Space


class Fitness(Protocol):
    """J of policies, lower is better. A generation is asked for at once; asking again costs nothing."""

    def __call__(self, policies: Sequence[Policy], stage: int) -> Sequence[float]:
        """stage: 0 is the first and cheapest one."""


Change = Literal["", "eta", "projector"]
"""What of the judge has changed, so that what it would say is no longer what it said."""

Refine = Callable[[Sequence[Policy]], Change]
"""Changes the judge itself around the population, best first."""


@dataclass(frozen=True)
class Generation:
    """How the search stood after a generation: J of the best policy and of the best uniform one on all samples.

    changed: what of the judge did in the end, before these were judged.
    """

    index: int
    best: float
    uniform: float
    changed: Change


@dataclass(frozen=True)
class Plan:
    """How long and how widely to search. stages: how many times offspring are judged, on more samples each time."""

    generations: int
    offspring: int
    survivors: int
    seed: int
    stages: int = 1


@dataclass(frozen=True)
class Outcome:
    best: Policy
    history: tuple[Generation, ...]


def evolve(
    space: Space,
    fitness: Fitness,
    plan: Plan,
    refine: Refine = lambda _: "",
    report: Callable[[Generation], None] = lambda _: None,
    starts: Sequence[Policy] = (),
) -> Outcome:
    """The best policy found from the uniform ones and `starts` onwards, every candidate within the space's budget."""
    rng = random.Random(plan.seed)
    last = plan.stages - 1
    uniforms = space.uniforms()
    first = _different([*uniforms, *starts])
    population = _best(first, fitness(first, last), plan.survivors)
    history = []
    for index in range(plan.generations):
        offspring = [space.mutate(rng.choice(population), rng) for _ in range(plan.offspring)]
        contenders = _different([*population, *_promising(offspring, population, fitness, plan)])
        population = _best(contenders, fitness(contenders, last), plan.survivors)
        if changed := refine(population):
            population = _best(population, fitness(population, last), plan.survivors)
        best, uniform = fitness(population[:1], last)[0], min(fitness(uniforms, last))
        history.append(Generation(index + 1, best, uniform, changed))
        report(history[-1])
    return Outcome(population[0], tuple(history))


def _promising(
    offspring: Sequence[Policy], population: Sequence[Policy], fitness: Fitness, plan: Plan
) -> Sequence[Policy]:
    """Those of the offspring that come to the last stage."""
    known = {policy.key() for policy in population}
    candidates = [policy for policy in _different(offspring) if policy.key() not in known]
    for stage in range(plan.stages - 1):
        candidates = _best(candidates, fitness(candidates, stage), max(plan.survivors, -(-len(candidates) // 2)))
    return candidates


def _different(policies: Sequence[Policy]) -> list[Policy]:
    different: dict[object, Policy] = {}
    for policy in policies:
        different.setdefault(policy.key(), policy)
    return list(different.values())


def _best(policies: Sequence[Policy], verdicts: Sequence[float], count: int) -> list[Policy]:
    """The best `count`, best first; the earlier one wins a tie."""
    order = sorted(range(len(policies)), key=verdicts.__getitem__)
    return [policies[i] for i in order[:count]]
