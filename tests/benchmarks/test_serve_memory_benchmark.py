"""The benchmark of a server's memory runs, and compares what it says it does."""

from collections.abc import Callable
from typing import Any


def test_a_tiny_server_is_reckoned_and_measured(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("serve_memory.py", "serve_memory")
    (row,) = result["rows"]
    assert row["name"] == "largest error of the reckoning, where caches are full"
    assert 0 < row["value"] < 100
    assert "packed int8 50%" in result["table"]
