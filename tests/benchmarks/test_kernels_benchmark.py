"""The kernel benchmark runs with every engine that is installed, and its figures are what they say they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slimdeploy.kernels.library import library_file

needs_kernels = pytest.mark.skipif(library_file() is None, reason="the kernels were not built: no compiler")


@needs_kernels
def test_a_quick_run_measures_every_goal_and_keeps_nothing(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("kernel_speed.py", "kernels")
    names = [row["name"] for row in result["rows"]]
    assert "ours int4 50% against MatMulNBits int4, 1 row" in names
    assert "ours int4 26:64 against MatMulNBits int4, 1 row" in names
    assert "ours int8 50% against onnxruntime dynamic int8, 576 rows" in names
    assert "ours bf16 50% against torch bf16, 576 rows" in names
    assert all(row["value"] > 0 and row["unit"] and isinstance(row["met"], bool) for row in result["rows"])


def test_every_contender_has_its_turn_in_every_round() -> None:
    from rounds import Contender, Setting, seconds_per_layer

    turns: list[str] = []

    def chunk(name: str) -> Callable[..., Callable[[], None]]:
        return lambda *_: lambda: turns.append(name)

    contenders = [Contender("a", 1, 1, [chunk("a1"), chunk("a2")]), Contender("b", 1, 1, [chunk("b1")])]
    rng = np.random.default_rng(0)
    seconds_per_layer(contenders, Setting(1, 1, rounds=2), 8, rng)
    assert turns == 3 * ["a1", "a2", "b1"], "two rounds after one that warms up, each through the whole stacks"
    turns.clear()
    seconds_per_layer(contenders, Setting(576, 1, rounds=2, whole_stack=False), 8, rng)
    assert turns == ["a1", "b1", "a2", "b1", "a1", "b1"], "prefill takes the next part of each stack"


def test_a_ratio_is_how_many_times_as_fast_and_the_roof_counts_bytes() -> None:
    from kernel_tables import Block
    from rounds import Setting

    setting = Setting(1, 1, rounds=1)
    seconds = {setting: {"peer": 4.0, "ours": 2.0}}
    block = Block("peer", {"peer": "", "ours": "sparse"}, {"peer": 8, "ours": 6}, seconds, {setting: 5.0})
    assert block.ratio("ours", setting) == 2
    assert block.share_of_roof("ours", setting) == pytest.approx(6 / 2 / 5)


@needs_kernels
@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
def test_random_weights_are_valid_and_differ(values: str):
    from contenders.ours import PATTERNS, RandomWeights

    for pattern in PATTERNS:
        weights = RandomWeights(256, values, pattern, np.random.default_rng(0))
        blocks = weights.blocks()
        one, other = weights.packed(blocks), weights.packed(blocks)
        one.validate(pattern)
        assert one.values.tobytes() != other.values.tobytes()
        assert pattern == "dense" or one.mask.tobytes() != other.mask.tobytes()
