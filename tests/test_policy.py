"""The arithmetic of budgets is exact: what the policy counts is what the masks keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.policy import DENSE, Layer, Level, Policy, available_levels, describe, kept_per_row, weight_budget
from slimdeploy.tables import policy_table


@given(columns=st.integers(1, 5000), sparsity=st.floats(0, 0.95))
def test_an_unstructured_row_keeps_its_share_to_half_a_weight(columns: int, sparsity: float) -> None:
    exact = columns - sparsity * columns
    # Half a weight, and the last places of the two products, whose borders differ.
    assert abs(kept_per_row(columns, Level(sparsity)) - exact) <= 0.5 + 1e-9


@given(groups=st.integers(0, 9), size=st.sampled_from([4, 8, 64]), rest=st.integers(0, 63), kept=st.integers(1, 64))
def test_every_group_keeps_n_and_the_remainder_its_share(groups: int, size: int, rest: int, kept: int) -> None:
    kept, rest = min(kept, size), rest % size
    level = Level(1 - kept / size, size)
    assert level.kept_per_group == kept
    assert kept_per_row(groups * size + rest, level) == groups * kept + round(kept * rest / size)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "*:64", "*:4"])
def test_levels_start_dense_and_grow_sparser(pattern: str) -> None:
    levels = available_levels(pattern, 0.05)
    assert levels[0] == DENSE
    kept = [kept_per_row(4096, level) for level in levels]
    assert kept == sorted(set(kept), reverse=True)


def test_a_pattern_keeps_its_name() -> None:
    assert [level.pattern for level in available_levels("2:4", 0.05)] == ["unstructured", "2:4"]
    assert available_levels("*:64", 0.05)[38].pattern == "26:64"


def test_sparsity_weighs_layers_by_their_size() -> None:
    layers = [Layer("a", "language", 10, 100), Layer("b", "vision", 10, 300)]
    policy = Policy({"a": Level(0.5), "b": DENSE})
    assert policy.kept(layers) == 500 + 3000
    assert policy.sparsity(layers) == pytest.approx(0.125)
    assert weight_budget(layers, 0.6) == 1600


def test_a_policy_survives_json() -> None:
    policy = Policy({"a": Level(0.55, 0, "int8"), "b": Level(0.5, 4)})
    assert Policy.from_json(policy.to_json()) == policy


def test_a_table_of_layers_names_the_type_that_the_policy_chose() -> None:
    layers = [Layer("a", "language", 10, 100), Layer("b", "vision", 10, 300)]
    rows = describe(layers, Policy({"a": Level(0.5, 0, "int4"), "b": DENSE}))
    patterns = list(policy_table(rows).columns[2].cells)
    assert patterns == ["unstructured int4", "unstructured", ""]
