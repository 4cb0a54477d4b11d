"""What the command line shows, as rich tables. Renders; measures and prints nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from .doctor import Finding
from .measurements import LATENCY_METRICS
from .report import STAGES, Report
from .scoring import Accuracy

if TYPE_CHECKING:
    from .serve.memory import Need


def verdict(report: Report) -> list[RenderableType]:
    """The end of a run: accuracy by stage, size, speed, targets, and what to do next."""
    lines: list[RenderableType] = [_figures(report)]
    if report.targets:
        lines.append(_targets(report))
    lines += [escape(f"note: {note}") for note in report.notes]
    if report.targets:
        missed = sum(not target.met for target in report.targets)
        lines.append("all targets met" if not missed else f"{missed} of {len(report.targets)} targets missed")
    return lines


def _figures(report: Report) -> Table:
    table = _table(escape(report.model), "figure", "value")
    for stage in STAGES:
        if accuracy := report.accuracy.get(stage):
            where = " (endpoint)" if stage == "artifact" else ""
            table.add_row(f"accuracy {stage}{where}", _share(accuracy))
    for pair, share in (report.agreement or {}).items():
        table.add_row(f"equal answers {pair.replace('_', ' and ')}", f"{100 * share:.2f}%")
    sizes = report.size_bytes
    if sizes.artifact is not None:
        beside = "" if sizes.dense is None else f" (dense checkpoint {sizes.dense / 1e6:.1f} MB)"
        table.add_row("size of the artifact", f"{sizes.artifact / 1e6:.1f} MB{beside}")
    if comparison := report.comparison:
        for what, ours, other, gain in comparison.rows():
            table.add_row(f"{what}, beside {comparison.other.weights}", f"{gain} ({ours} against {other})")
    if run := report.run:
        table.add_row("throughput", f"{run.throughput:.0f} tokens/s, {run.requests_per_second:.0f} requests/s")
        for metric in LATENCY_METRICS:
            distribution = run.distribution(metric)
            percentiles = [(p, distribution.percentile(p)) for p in (50, 95)]
            text = ", ".join(f"p{p} {'-' if value is None else f'{value:.1f} ms'}" for p, value in percentiles)
            table.add_row(metric.upper(), text)
    return table


def _targets(report: Report) -> Table:
    table = _table("targets", "target", "goal", "measured", "")
    for target in report.targets:
        result = "[green]met[/]" if target.met else "[red]missed[/]"
        measured = f"{target.measured_text} ({target.reason})" if target.reason else target.measured_text
        table.add_row(target.name, target.goal_text, escape(measured), result)
    return table


def accuracy_table(accuracy: Accuracy, dense: Accuracy | None = None, of: str = "") -> Table:
    """Overall and by type of question; and what share of the dense model's accuracy it is, where that is known.

    of: whose accuracy it is, where several are shown.
    """
    kept = ("kept of dense",) if dense else ()
    table = _table(f"{of} accuracy on the test split".lstrip(), "questions", "accuracy", *kept, "count")
    dense_kinds = dense.by_kind if dense else {}
    for kind, share in accuracy.by_kind.items():
        table.add_row(kind, _share(share), *(_kept(share, dense_kinds.get(kind)) for _ in kept), str(share.count))
    table.add_row("all", _share(accuracy), *(_kept(accuracy, dense) for _ in kept), str(accuracy.count), style="bold")
    return table


def _kept(accuracy: Accuracy, dense: Accuracy | None) -> str:
    return f"{100 * accuracy.value / dense.value:.1f}%" if dense and dense.value else "-"


def policy_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per prunable layer, as `policy.describe` gives them or a manifest has them, and their sum.

    What a layer takes in the files stands in the place of how many weights it keeps, where that is known.
    """
    stored = all("bytes" in row for row in rows)
    headers = ("bits/weight", "bytes", "as float32") if stored else ("kept",)
    table = _table("prunable layers", "layer", "shape", "pattern", "sparsity", *headers)
    table.columns[0].overflow = "fold"  # prune.skip needs the whole name
    for row in rows:
        weights = row["rows"] * row["columns"]
        figures = _size(row["bytes"], weights) if stored else (f"{row['kept']:,}",)
        shape, share = f"{row['rows']} x {row['columns']}", f"{100 * row['sparsity']:.1f}%"
        level = f"{row['pattern']} {row.get('values', '')}".rstrip()
        table.add_row(row["name"], shape, level, share, *figures)
    weights = sum(row["rows"] * row["columns"] for row in rows)
    kept = sum(row["kept"] for row in rows)
    total = f"{100 * (1 - kept / weights):.1f}%" if weights else "-"
    figures = _size(sum(row["bytes"] for row in rows), weights) if stored else (f"{kept:,}",)
    table.add_row("all", f"{weights:,}", "", total, *figures, style="bold")
    return table


def _size(stored: int, weights: int) -> tuple[str, str, str]:
    """Bits per weight, the pruned ones counted; bytes in the files; bytes as plain float32."""
    return f"{8 * stored / weights:.2f}" if weights else "-", f"{stored:,}", f"{4 * weights:,}"


def findings_table(findings: Sequence[Finding]) -> Table:
    table = _table("doctor", "what", "found")
    for finding in findings:
        problem = f"\n[red]{escape(finding.problem)}[/]" if finding.problem else ""
        table.add_row(finding.name, f"{escape(finding.value)}{problem}")
    return table


def memory_table(needs: Sequence["Need"], free: int | None) -> Table:
    """What serving takes, and what the machine has."""
    table = _table("memory to serve with", "what", "MB", "how it was reckoned")
    table.columns[1].justify = "right"
    for need in needs:
        table.add_row(need.what, f"{need.bytes / 1e6:,.0f}", need.how)
    table.add_row("all", f"{sum(need.bytes for need in needs) / 1e6:,.0f}", "", style="bold")
    if free is not None:
        table.add_row("free", f"{free / 1e6:,.0f}", "on this machine, swap included")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return table


def _share(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f} ± {100 * accuracy.standard_error:.1f}%"
