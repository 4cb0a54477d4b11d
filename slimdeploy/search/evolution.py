"""An evolutionary search over policies, behind a function that judges one. Knows no torch and no model.

Deterministic by seed. Nothing is judged twice, unless `refine` changes what the judge would say.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..policy import Policy
from .space import Space

Fitness = Callable[[Policy], float]
"""J of a policy; lower is better."""

Refine = Callable[[Policy], bool]
"""Improves the judge itself around the best policy (the projector); True when it did, and old verdicts are void."""


@dataclass(frozen=True)
class Generation:
    """How the search stood after a generation. evaluations: calls of the fitness function so far."""

    index: int
    best: float
    uniform: float
    evaluations: int
    refined: bool


@dataclass(frozen=True)
class Plan:
    """How long and how widely to search."""

    generations: int
    offspring: int
    survivors: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    best: Policy
    history: tuple[Generation, ...]


class _Judge:
    """The fitness function with a memory."""

    def __init__(self, fitness: Fitness) -> None:
        self.evaluations = 0
        self._fitness = fitness
        self._known: dict[object, float] = {}

    def __call__(self, policy: Policy) -> float:
        key = policy.key()
        if key not in self._known:
            self._known[key] = self._fitness(policy)
            self.evaluations += 1
        return self._known[key]

    def forget(self) -> None:
        self._known.clear()


def evolve(
    space: Space,
    fitness: Fitness,
    plan: Plan,
    refine: Refine = lambda _: False,
    report: Callable[[Generation], None] = lambda _: None,
) -> Outcome:
    """The best policy found from the uniform one onwards, every candidate within the space's budget."""
    rng = random.Random(plan.seed)
    judge = _Judge(fitness)
    uniform = space.uniform()
    population = [uniform]
    history = []
    for index in range(plan.generations):
        offspring = [space.mutate(rng.choice(population), rng) for _ in range(plan.offspring)]
        population = _fittest([*population, *offspring], judge, plan.survivors)
        refined = refine(population[0])
        if refined:
            judge.forget()
            population = _fittest(population, judge, plan.survivors)
        history.append(Generation(index + 1, judge(population[0]), judge(uniform), judge.evaluations, refined))
        report(history[-1])
    return Outcome(population[0], tuple(history))


def _fittest(policies: Sequence[Policy], judge: _Judge, count: int) -> list[Policy]:
    """The best `count` policies that differ, best first; the earlier one wins a tie."""
    different: dict[object, Policy] = {}
    for policy in policies:
        different.setdefault(policy.key(), policy)
    return sorted(different.values(), key=judge)[:count]
