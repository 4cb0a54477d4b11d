"""The benchmark of ONNX exports runs in every form, keeps no trial, and reads a profile rightly."""

from collections.abc import Callable
from typing import Any


def test_a_quick_run_measures_every_form_and_keeps_nothing(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("onnx_speed.py", "onnx")
    assert all(row["value"] > 0 for row in result["rows"])
    for form in ("packed int4 26:64", "MatMulNBits int4", "float16", "torch bf16"):
        assert form in result["table"]


def test_a_profile_adds_up_the_nodes_of_an_operator_over_the_runs_that_count() -> None:
    from onnx_profile import times_by_operator

    def event(name: str, operator: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator}}

    events = [{"cat": "Session", "name": "model_run", "dur": 99999}]
    for first in (9000, 2000, 2000):
        events += [event("a", "Add", first), event("b", "Add", 1000), event("c", "Mul", 500)]
    assert times_by_operator(events, tokens=2) == {"Add": 3.0, "Mul": 0.5}
