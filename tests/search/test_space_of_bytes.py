"""A budget in bytes: what a level costs is what is stored, and no policy leaves an upgrade unspent."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.config import BudgetConfig, Config, ExportConfig, OnnxConfig, PruneConfig, SearchConfig
from slimdeploy.errors import PruneError
from slimdeploy.exporters.packing import pack_smallest
from slimdeploy.packed_tensor import ENCODINGS
from slimdeploy.policy import Layer, Level, Values, kept_per_row, kept_weights
from slimdeploy.search.space import Space, search_space, stored_bytes

LAYERS = (
    Layer("vision.0.fc1", "vision", 96, 64),
    Layer("projector.1", "projector", 64, 64),
    Layer("language.0.up", "language", 130, 70),
    Layer("language.0.down", "language", 70, 130),
    Layer("language.1.q", "language", 64, 300),
)
DENSE_INT8 = sum(stored_bytes(layer, Level(0.0, 0, "int8")) for layer in LAYERS)


def _space(
    share: float,
    pattern: str = "unstructured",
    values: Sequence[Values] = ("int8", "int4"),
    skip: tuple[str, ...] = (),
    method: str = "evolution",
) -> Space:
    """share: of the bytes that the layers would take as dense int8."""
    tables = {"method": method, "values": tuple(values), "budget": BudgetConfig(bytes=int(share * DENSE_INT8))}
    search = SearchConfig.model_validate(tables)
    export = ExportConfig(onnx=OnnxConfig(weights="packed"))
    return search_space(LAYERS, Config(prune=PruneConfig(pattern=pattern, skip=skip), search=search, export=export))


patterns = st.sampled_from(["unstructured", "2:4", "*:8", "26:64"])


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 400),
    sparsity=st.floats(0, 0.95),
    values=st.sampled_from(["int8", "int4"]),
    group=st.sampled_from([0, 4, 64]),
)
def test_the_cost_of_a_level_is_what_its_packed_matrix_takes(
    rows: int, columns: int, sparsity: float, values: Values, group: int
) -> None:
    level = (
        Level(1 - max(1, round((1 - sparsity) * group)) / group, group, values) if group else Level(sparsity, 0, values)
    )
    rng = np.random.default_rng(columns)
    weight = rng.uniform(0.1, 1, (rows, columns)).astype(np.float32)
    if level.group:
        for start in range(0, columns, level.group):
            block = weight[:, start : start + level.group]
            block[:, kept_per_row(block.shape[1], level) :] = 0
    else:
        weight[:, kept_per_row(columns, level) :] = 0
    layer = Layer("x", "language", rows, columns)
    assert np.count_nonzero(weight) == kept_weights(layer, level)
    assert stored_bytes(layer, level) == pack_smallest(weight, ENCODINGS[f"packed-{values}"], level.pattern).bytes


@settings(deadline=None)
@given(share=st.floats(0.5, 1.05), pattern=patterns, seed=st.integers(0, 10**6))
def test_every_mutation_keeps_the_budget_and_spends_it(share: float, pattern: str, seed: int) -> None:
    space = _space(share, pattern)
    rng = random.Random(seed)
    policy = rng.choice(space.uniforms())
    for _ in range(3):
        policy = space.mutate(policy, rng)
        left = space.budget - space.spent(policy)
        assert left >= 0
        for layer in space.layers:
            paid = space.cost(layer, policy.levels[layer.name])
            assert not [level for level in space.levels if 0 < space.cost(layer, level) - paid <= left]


@settings(deadline=None)
@given(share=st.floats(0.25, 1.2))
def test_uniform_is_the_least_sparse_level_of_every_type_that_fits(share: float) -> None:
    space = _space(share)
    uniforms = space.uniforms()
    for policy in uniforms:
        (level,) = set(policy.levels.values())
        assert space.fits(policy)
        assert not level.sparsity or not space.fits(
            space.policy(Level(round(level.sparsity - 1e-4, 6), 0, level.values))
        )
    assert [policy.levels["projector.1"].values for policy in uniforms] in (["int8", "int4"], ["int4"])


def test_steps_lead_from_either_type_to_the_other_and_back() -> None:
    """Dense int4 and sparse int8 of about the same bytes are a step apart."""
    space, layer = _space(0.6), LAYERS[4]
    reached, waiting = set(), [Level(0.0, 0, "int8")]
    while waiting:
        level = waiting.pop()
        if level not in reached:
            reached.add(level)
            waiting += [*space.dearer(layer, level), *space.cheaper(layer, level)]
    assert {level.values for level in reached} == {"int8", "int4"}
    dense_int4 = Level(0.0, 0, "int4")
    near = [level for level in space.dearer(layer, dense_int4) if level.values == "int8"]
    assert near
    assert any(dense_int4 in space.dearer(layer, below) for below in space.cheaper(layer, near[0]))


def test_zeros_that_save_nothing_are_no_step() -> None:
    space = _space(0.6)
    for layer in LAYERS:
        steps = [level for values in ("int8", "int4") for level in space.levels if level.values == values]
        reached = {level for step in steps for level in (*space.dearer(layer, step), *space.cheaper(layer, step))}
        for values in ("int8", "int4"):
            dense = stored_bytes(layer, Level(0.0, 0, values))
            assert all(stored_bytes(layer, x) < dense for x in reached if x.sparsity and x.values == values)


def test_what_is_skipped_is_dense_in_the_first_type_and_counts() -> None:
    space = _space(0.7, skip=("language.0.*",))
    left_dense = sum(stored_bytes(layer, Level(0.0, 0, "int8")) for layer in space.skipped)
    assert [layer.name for layer in space.skipped] == ["language.0.up", "language.0.down"]
    assert space.budget + left_dense == int(0.7 * DENSE_INT8)
    assert all(policy.levels["language.0.up"] == Level(0.0, 0, "int8") for policy in space.uniforms())


@pytest.mark.parametrize(("pattern", "skip"), [("unstructured", ()), ("2:4", ()), ("unstructured", ("language.*",))])
def test_a_budget_that_cannot_be_met_is_refused_with_the_least_bytes_that_can(
    pattern: str, skip: tuple[str, ...]
) -> None:
    with pytest.raises(PruneError, match=r"search.budget.bytes = .* cannot be met: .* bytes at the least") as error:
        _space(0.01, pattern, skip=skip)
    least = int(str(error.value).split(" bytes at the least")[0].split(" take ")[1].replace(",", ""))
    space = _space((least + 0.5) / DENSE_INT8, pattern, skip=skip)
    assert min(map(space.spent, space.uniforms())) <= space.budget
    with pytest.raises(PruneError, match="cannot be met"):
        _space((least - 0.5) / DENSE_INT8, pattern, skip=skip)


def test_one_type_alone_needs_no_search() -> None:
    (policy,) = _space(0.6, values=["int4"], method="uniform").uniforms()
    assert set(policy.levels.values()) == {Level(0.0, 0, "int4")}
