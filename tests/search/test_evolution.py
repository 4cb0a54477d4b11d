"""The search itself, on a made-up fitness: it improves, repeats by seed, and asks whole generations in stages."""

import subprocess
import sys
from collections.abc import Sequence

from slimdeploy.config import BudgetConfig, Config, SearchConfig
from slimdeploy.policy import Layer, Policy
from slimdeploy.search import Generation, Outcome, Plan, evolve, search_space
from slimdeploy.search.evolution import Change

LAYERS = [Layer(f"block.{i}", "language", 64, 64 + 32 * (i % 3)) for i in range(8)]
SPACE = search_space(LAYERS, Config(search=SearchConfig(budget=BudgetConfig(sparsity=0.6))))
PLAN = Plan(generations=12, offspring=8, survivors=3, seed=1)
STAGED = Plan(generations=12, offspring=16, survivors=3, seed=1, stages=3)


def _j(policy: Policy) -> float:
    """Later blocks mind more."""
    return sum((i + 1) * policy.levels[layer.name].sparsity ** 2 for i, layer in enumerate(LAYERS))


def _fitness(policies: Sequence[Policy], stage: int) -> list[float]:
    return [_j(policy) for policy in policies]


def _run(plan: Plan = PLAN) -> Outcome:
    return evolve(SPACE, _fitness, plan)


def test_what_decides_knows_no_torch() -> None:
    script = "import sys, slimdeploy.search, slimdeploy.search.allocation; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_it_finds_better_than_uniform_and_never_falls_back() -> None:
    outcome = _run()
    best = [generation.best for generation in outcome.history]
    assert best == sorted(best, reverse=True)
    assert _j(outcome.best) == best[-1] < 0.9 * _j(SPACE.uniforms()[0])
    assert SPACE.fits(outcome.best)


def test_it_goes_on_from_the_policies_that_it_is_given() -> None:
    start = _run(STAGED).best
    assert _j(start) < _j(SPACE.uniforms()[0])
    outcome = evolve(SPACE, _fitness, Plan(generations=1, offspring=1, survivors=1, seed=1), starts=[start])
    assert _j(outcome.best) <= _j(start)
    assert outcome.history[0].uniform == _j(SPACE.uniforms()[0])  # it stays in the race


def test_equal_seeds_give_equal_policies_and_others_do_not() -> None:
    assert _run() == _run()
    assert _run().best != _run(Plan(12, 8, 3, seed=2)).best


def test_each_stage_is_asked_for_a_whole_generation_and_the_better_half_goes_on() -> None:
    asked: list[tuple[int, int]] = []

    def fitness(policies: Sequence[Policy], stage: int) -> list[float]:
        asked.append((stage, len(policies)))
        return [_j(policy) for policy in policies]

    evolve(SPACE, fitness, Plan(generations=1, offspring=16, survivors=3, seed=1, stages=3))
    (first_uniform, *generation) = asked
    assert first_uniform == (2, 1)
    # The uniform policy beside the four that came through; then the best and the uniform one for the history.
    assert generation == [(0, 16), (1, 8), (2, 1 + 4), (2, 1), (2, 1)]


def test_a_first_stage_that_errs_costs_candidates_but_the_last_one_decides() -> None:
    def fitness(policies: Sequence[Policy], stage: int) -> list[float]:
        return [_j(policy) if stage == 2 else -_j(policy) for policy in policies]

    misled, well_led = evolve(SPACE, fitness, STAGED), evolve(SPACE, _fitness, STAGED)
    best = [generation.best for generation in misled.history]
    assert best == sorted(best, reverse=True), "parents took part in the last stage"
    assert _j(well_led.best) < _j(misled.best) <= _j(SPACE.uniforms()[0])


def test_a_flat_fitness_keeps_the_uniform_policy() -> None:
    assert evolve(SPACE, lambda policies, _: [1.0] * len(policies), STAGED).best == SPACE.uniforms()[0]


def test_a_changed_judge_voids_old_verdicts() -> None:
    shift = [0.0]

    def refine(population: Sequence[Policy]) -> Change:
        assert [_j(policy) for policy in population] == sorted(_j(policy) for policy in population)
        shift[0] -= 1
        return "projector"

    outcome = evolve(SPACE, lambda policies, _: [_j(policy) + shift[0] for policy in policies], PLAN, refine)
    uniform = [generation.uniform for generation in outcome.history]
    assert uniform == [_j(SPACE.uniforms()[0]) - i for i in range(1, 13)]


def test_every_generation_is_reported() -> None:
    reported: list[Generation] = []
    outcome = evolve(SPACE, _fitness, PLAN, report=reported.append)
    assert tuple(reported) == outcome.history
