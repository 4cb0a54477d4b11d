"""No policy that a search can visit is over budget, and none leaves an upgrade unspent."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.config import BudgetConfig, Config, PruneConfig, SearchConfig
from slimdeploy.errors import PruneError
from slimdeploy.policy import DENSE, Layer, Level, kept_per_row
from slimdeploy.search.space import Space, search_space

LAYERS = (
    Layer("vision.0.fc1", "vision", 96, 64),
    Layer("projector.1", "projector", 64, 64),
    Layer("language.0.up", "language", 130, 70),
    Layer("language.0.down", "language", 70, 130),
    Layer("language.1.q", "language", 64, 64),
)


def _space(sparsity: float, pattern: str = "unstructured", skip: tuple[str, ...] = (), step: float = 0.05) -> Space:
    search = SearchConfig(level_step=step, budget=BudgetConfig(sparsity=sparsity))
    return search_space(LAYERS, Config(prune=PruneConfig(pattern=pattern, skip=skip), search=search))


settings = given(
    sparsity=st.floats(0, 0.85),
    pattern=st.sampled_from(["unstructured", "*:8", "*:64", "1:8"]),
    skip=st.sampled_from([(), ("language.1.*",), ("vision.*", "projector.*")]),
    seed=st.integers(0, 10**6),
)


@settings
def test_every_mutation_keeps_the_budget_and_spends_it(
    sparsity: float, pattern: str, skip: tuple[str, ...], seed: int
) -> None:
    space = _space(sparsity, pattern, skip)
    rng = random.Random(seed)
    policy = space.uniforms()[0]
    assert space.fits(policy)
    for _ in range(3):
        policy = space.mutate(policy, rng)
        assert space.fits(policy)
        left = space.budget - space.spent(policy)
        for layer in space.layers:
            level = policy.levels[layer.name]
            assert all(space.cost(layer, more) - space.cost(layer, level) > left for more in space.dearer(layer, level))
        assert all(policy.levels[layer.name] == DENSE for layer in space.skipped)


@given(sparsity=st.floats(0, 0.94))
def test_uniform_is_the_densest_single_level_within_budget(sparsity: float) -> None:
    space = _space(sparsity)
    uniform = space.uniforms()[0]
    (level,) = set(uniform.levels.values())
    assert space.fits(uniform)
    denser = Level(round(level.sparsity - 1e-4, 6))
    assert level == DENSE or not space.fits(space.policy(denser))


@given(
    columns=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    sparsity=st.floats(0, 0.87),
    pattern=st.sampled_from(["unstructured", "*:64", "*:8", "1:8"]),
    seed=st.integers(0, 10**6),
)
def test_no_policy_takes_all_of_a_row(columns: list[int], sparsity: float, pattern: str, seed: int) -> None:
    layers = [Layer(f"language.{i}.q", "language", 8, count) for i, count in enumerate(columns)]
    search = SearchConfig(level_step=0.05, budget=BudgetConfig(sparsity=sparsity))
    config = Config(prune=PruneConfig(pattern=pattern), search=search)
    try:
        space = search_space(layers, config)
    except PruneError:
        return
    rng = random.Random(seed)
    (policy,) = space.uniforms()
    policies = [policy, space.policy(space.levels[-1])]
    for _ in range(8):
        policy = space.mutate(policy, rng)
        policies.append(policy)
    assert all(kept_per_row(layer.columns, each.levels[layer.name]) > 0 for each in policies for layer in layers)


def test_the_sparsest_that_a_short_row_can_be_is_one_weight_less_than_nothing() -> None:
    space = _space(0.5)
    assert space.leaving(Layer("x", "language", 4, 8), Level(0.95)) == Level(0.875)
    space = _space(0.5, "*:64")
    # Of 20 columns, 1:64 would keep round(20/64) = 0 and 2:64 keeps one.
    assert space.leaving(Layer("x", "language", 4, 20), Level(63 / 64, 64)) == Level(62 / 64, 64)
    assert _space(0.5, "1:8").leaving(Layer("x", "language", 4, 3), Level(7 / 8, 8)) == DENSE


def test_an_n_of_m_pattern_gives_a_uniform_policy_of_that_pattern() -> None:
    assert set(_space(0.5, "32:64").uniforms()[0].levels.values()) == {Level(0.5, 64)}
    assert set(_space(0.6, "*:64").uniforms()[0].levels.values()) == {Level(1 - 25 / 64, 64)}


@pytest.mark.parametrize(
    ("sparsity", "pattern", "choice"),
    [
        (0.5, "2:4", False),
        (0.4, "2:4", True),
        (0.75, "1:4", False),
        (0.5, "1:4", True),
        (0.95, "unstructured", False),
        (0.9, "unstructured", True),
        (0.5, "*:4", True),
    ],
)
def test_where_all_matrices_have_to_be_at_their_sparsest_there_is_no_choice(
    sparsity: float, pattern: str, choice: bool
) -> None:
    layers = [Layer(str(number), "language", 64, 200) for number in range(12)]
    search = SearchConfig(budget=BudgetConfig(sparsity=sparsity))
    assert search_space(layers, Config(prune=PruneConfig(pattern=pattern), search=search)).has_choice() == choice


def test_sparsity_zero_leaves_everything_dense() -> None:
    assert set(_space(0).uniforms()[0].levels.values()) == {DENSE}


def test_a_skipped_layer_stays_dense_and_does_not_count() -> None:
    space = _space(0.5, skip=("language.0.*",))
    assert [layer.name for layer in space.skipped] == ["language.0.up", "language.0.down"]
    assert space.budget == sum(layer.weights for layer in space.layers) // 2
    assert space.uniforms()[0].levels["language.0.up"] == DENSE


def test_a_budget_that_rounding_puts_out_of_reach_is_refused() -> None:
    # 5 of 7 removes 28.57%, but the odd columns at the end of a row keep more than their share.
    with pytest.raises(PruneError, match=r"sparsity = 0.2857 cannot be met: pattern '5:7' removes at most 0.28"):
        _space(0.2857, "5:7")


def test_levels_that_end_before_the_budget_are_refused_with_the_step_as_the_cause() -> None:
    with pytest.raises(PruneError, match=r"level_step = 0.5 the sparsest level removes 0.5.*a smaller search.level_st"):
        _space(0.6, step=0.5)


def test_the_uniform_method_needs_no_levels() -> None:
    search = SearchConfig(method="uniform", level_step=0.5, budget=BudgetConfig(sparsity=0.6))
    space = search_space(LAYERS, Config(search=search))
    assert space.fits(space.uniforms()[0])


def test_a_glob_that_names_no_layer_is_refused() -> None:
    with pytest.raises(PruneError, match=r"prune.skip = 'langauge.\*' names no layer"):
        _space(0.5, skip=("langauge.*",))


def test_skipping_everything_is_refused() -> None:
    with pytest.raises(PruneError, match="names every layer"):
        _space(0.5, skip=("*",))
