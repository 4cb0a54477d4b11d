"""The benchmark of large ONNX exports runs, keeps no trial, and says so where nothing was verified."""

from collections.abc import Callable
from typing import Any


def test_a_quick_run_exports_and_verifies_and_keeps_nothing(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("onnx_scale.py", "onnx_scale")
    of = "1 + 2 blocks, packed-int4"
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [f"{what}, {of}" for what in ("peak memory", "peak beyond the weights", "prompts verified")]
    assert rows[f"peak memory, {of}"]["met"]
    assert rows[f"prompts verified, {of}"]["value"] == 1
    assert "decoder_model_merged" in result["table"]


def test_the_peak_beyond_the_weights_is_told_in_sizes_of_the_largest_part() -> None:
    from onnx_scale import Exported

    found = Exported(1.0, 700, [], {"decoder_model_merged": 200, "vision_encoder": 100}, {"prompts": 1}, None)
    assert found.beyond == 2.0


def test_an_export_that_was_not_verified_misses_its_goal_in_words() -> None:
    from onnx_scale import Exported, note, rows_of
    from prune_scale import TINY

    found = Exported(1.0, 700, [], {"decoder_model_merged": 200}, None, "it differs")
    last = list(rows_of(found, TINY, "packed-int4", 1))[-1]
    assert (last.value, last.unit, last.met) == (None, "not verified: it differs", False)
    assert "it differs" in note(found, 1)
