"""The report as one HTML file: no other file, no other host, readable in light, dark and print.

The template is report.html beside this file; all texts go through jinja2's escaping.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import report_plots as plots
from .measurements import LATENCY_METRICS, LatencyMetric, Run, latency_table
from .report import LayerSparsity, Report
from .targets import TargetResult
from .writing import new_file

_TOWERS = {"vision": "Vision tower", "projector": "Projector", "language": "Language model"}
_PLAIN_NAMES = {"ttft": "time to first token", "tpot": "time per further token", "e2e": "whole answer"}


def render_html(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("slimdeploy", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        verdict=verdict(report),
        created=f"{datetime.fromisoformat(report.created):%d %B %Y, %H:%M} UTC",
        figures=_figures(report),
        accuracy=_accuracy(report),
        size=plots.size_bars(report.size_bytes) if report.size_bytes.artifact else None,
        run=report.run,
        latencies=_latencies(report.run, report.targets) if report.run else [],
        timeline=plots.timeline(report.run) if report.run else None,
        search=plots.search_curve(report.search) if report.search and report.search.best else None,
        restoration=plots.restoration_curve(report.restoration) if report.restoration else None,
        towers=_towers(report.policy or ()),
    )


def write_html(report: Report, path: Path) -> None:
    """The whole page or, when the disk is full, nothing new; raises ArtifactError."""
    with new_file(path) as file:
        file.write_text(render_html(report), encoding="utf-8")


def verdict(report: Report) -> str:
    """The one sentence that the page opens with."""
    missed = sum(not target.met for target in report.targets)
    count = len(report.targets)
    match count, missed:
        case 0, _:
            return "No targets were set"
        case 1, _:
            return "The target is missed" if missed else "The target is met"
        case _, 0:
            return f"All {count} targets are met"
        case _:
            return f"{missed} of {count} targets {'is' if missed == 1 else 'are'} missed"


def _figures(report: Report) -> list[tuple[str, str, str]]:
    """(name, figure, what it is held against) of the few numbers that matter most."""
    figures: list[tuple[str, str, str]] = []
    dense, artifact = report.accuracy.get("dense"), report.accuracy.get("artifact")
    if artifact:
        against = f"dense {100 * dense.value:.1f}%" if dense else f"± {100 * artifact.standard_error:.1f}"
        figures.append(("Accuracy", f"{100 * artifact.value:.1f}%", against))
    if size := report.size_bytes.artifact:
        dense_size = report.size_bytes.dense
        against = f"dense {dense_size / 1e6:,.1f} MB" if dense_size else "on disk"
        figures.append(("Size", f"{size / 1e6:,.1f} MB", against))
    if run := report.run:
        for metric in ("ttft", "tpot"):
            median, late = (run.distribution(metric).percentile(percent) for percent in (50, 95))
            if median is not None:
                tail = "failures" if late is None else f"{late:.1f} ms"
                figures.append((f"{metric.upper()} median", f"{median:.1f} ms", f"p95 {tail}"))
        figures.append(("Throughput", f"{run.throughput:,.0f} tokens/s", f"{run.requests_per_second:,.1f} requests/s"))
    return figures


def _accuracy(report: Report) -> dict[str, Any] | None:
    known = plots.known_accuracy(report)
    if not known:
        return None
    by_kind = plots.accuracy_by_kind(known) if any(found.by_kind for found in known.values()) else None
    return {"stages": list(known), "bars": plots.accuracy_bars(known), "by_kind": by_kind}


def _latencies(run: Run, targets: tuple[TargetResult, ...]) -> list[dict[str, Any]]:
    table = latency_table(run)
    return [
        {"name": metric.upper(), "meaning": _PLAIN_NAMES[metric], "row": table[metric], **_panels(run, metric, targets)}
        for metric in LATENCY_METRICS
    ]


def _panels(run: Run, metric: LatencyMetric, targets: tuple[TargetResult, ...]) -> dict[str, Markup | None]:
    distribution = run.distribution(metric)
    if not distribution.values:
        return {"histogram": None, "cumulative": None}
    goals = {f"target p{target.percentile:g}": target.goal for target in targets if target.metric == metric}
    return {
        "histogram": plots.histogram(distribution, metric, goals),
        "cumulative": plots.cumulative(distribution, metric, goals),
    }


def _towers(policy: tuple[LayerSparsity, ...]) -> list[dict[str, Any]]:
    """Per tower: its name, weights, share removed, and the map of its matrices."""
    towers = []
    for tower in dict.fromkeys(layer.tower for layer in policy):
        layers = [layer for layer in policy if layer.tower == tower]
        weights = sum(layer.rows * layer.columns for layer in layers)
        removed = sum(layer.rows * layer.columns * layer.sparsity for layer in layers)
        heat = plots.heat_map(layers)
        towers.append({"name": _TOWERS.get(tower, tower), "weights": weights, "share": removed / weights, "map": heat})
    return towers
