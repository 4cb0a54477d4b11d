"""One form for every benchmark: a table for people, and rows with goals as JSON in benchmarks/results/."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from slimdeploy.report import now, this_machine

RESULTS = Path(__file__).parent / "results"
_WIDTH = 200


@dataclass(frozen=True)
class Row:
    """One figure that has a goal. goal: a bound in `unit`; at_most: whether it is an upper one.

    value: None where there is no such figure; then `unit` says in words why, and the goal is missed.
    """

    name: str
    value: float | None
    unit: str
    goal: float
    at_most: bool

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def markdown_table(*columns: str) -> Table:
    return Table(*columns, box=box.MARKDOWN)


def publish(
    name: str, rows: Sequence[Row], details: Sequence[Table | str] = (), *, as_json: bool = False, keep: bool = True
) -> None:
    """Print the details and the table of goals, or all of it as JSON, and write benchmarks/results/NAME.json.

    details: what was measured beside the goals. keep: False for a trial, whose figures mean nothing.
    """
    table = markdown_table("figure", "value", "goal", "met")
    for row in rows:
        bound = "at most" if row.at_most else "at least"
        value = row.unit if row.value is None else f"{row.value:.4g} {row.unit}"
        table.add_row(row.name, value, f"{bound} {row.goal:g}", "yes" if row.met else "no")
    console = Console(width=_WIDTH)
    with console.capture() as capture:
        for part in (*details, table):
            console.print(part, highlight=False)
    text = "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())
    result = {
        "machine": asdict(this_machine()),
        "date": now(),
        # A folder of this machine says nothing elsewhere.
        "command": shlex.join(["python", *("DIR" if Path(part).is_absolute() else part for part in sys.argv)]),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        "table": text,
    }
    console.print(json.dumps(result, indent=1) if as_json else text, highlight=False, markup=False, soft_wrap=True)
    if not keep:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
