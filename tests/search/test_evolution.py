"""The search itself, on a made-up fitness: it improves, repeats by seed, and judges nothing twice."""

from collections import Counter

from slimdeploy.config import BudgetConfig, Config, SearchConfig
from slimdeploy.policy import Layer, Policy
from slimdeploy.search.evolution import Generation, Outcome, Plan, evolve
from slimdeploy.search.space import search_space

LAYERS = [Layer(f"block.{i}", "language", 64, 64 + 32 * (i % 3)) for i in range(8)]
SPACE = search_space(LAYERS, Config(search=SearchConfig(budget=BudgetConfig(sparsity=0.6))))
PLAN = Plan(generations=12, offspring=8, survivors=3, seed=1)


def _fitness(policy: Policy) -> float:
    """Later blocks mind more."""
    return sum((i + 1) * policy.levels[layer.name].sparsity ** 2 for i, layer in enumerate(LAYERS))


def _run(plan: Plan = PLAN) -> Outcome:
    return evolve(SPACE, _fitness, plan)


def test_it_finds_better_than_uniform_and_never_falls_back() -> None:
    outcome = _run()
    best = [generation.best for generation in outcome.history]
    assert best == sorted(best, reverse=True)
    assert _fitness(outcome.best) == best[-1] < 0.9 * _fitness(SPACE.uniform())
    assert SPACE.fits(outcome.best)


def test_equal_seeds_give_equal_policies_and_others_do_not() -> None:
    assert _run() == _run()
    assert _run().best != _run(Plan(12, 8, 3, seed=2)).best


def test_nothing_is_judged_twice() -> None:
    seen: Counter[object] = Counter()

    def fitness(policy: Policy) -> float:
        seen[policy.key()] += 1
        return _fitness(policy)

    outcome = evolve(SPACE, fitness, PLAN)
    assert set(seen.values()) == {1}
    assert outcome.history[-1].evaluations == len(seen)


def test_a_flat_fitness_keeps_the_uniform_policy() -> None:
    assert evolve(SPACE, lambda _: 1.0, PLAN).best == SPACE.uniform()


def test_a_changed_judge_voids_old_verdicts() -> None:
    shift = [0.0]

    def refine(_: Policy) -> bool:
        shift[0] -= 1
        return True

    outcome = evolve(SPACE, lambda policy: _fitness(policy) + shift[0], PLAN, refine)
    uniform = [generation.uniform for generation in outcome.history]
    assert uniform == [_fitness(SPACE.uniform()) - i for i in range(1, 13)]


def test_every_generation_is_reported() -> None:
    reported: list[Generation] = []
    outcome = evolve(SPACE, _fitness, PLAN, report=reported.append)
    assert tuple(reported) == outcome.history
