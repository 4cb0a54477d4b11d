"""The report's plots: which figures of a `Report` go where. Knows nothing of the page around them."""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from .measurements import Distribution, LatencyMetric, Run
from .report import STAGES, LayerSparsity, Loss, Report, SearchHistory, Sizes, Stage
from .scoring import Accuracy
from .svg import Axis, Plot, rectangle, standalone, svg, text
from .writing import new_file

WIDTH = 880
_PANEL = 286
_BINS = 28
_CDF_POINTS = 240
_BAR, _ROW, _LABELS, _VALUES = 16, 30, 120, 190


def accuracy_bars(accuracy: dict[Stage, Accuracy]) -> Markup:
    """One bar from 0 to 100% per stage, with the standard error as a whisker."""
    marks = []
    for row, (stage, found) in enumerate(accuracy.items()):
        shown = f"{100 * found.value:.1f}%"
        deviation = f"± {100 * found.standard_error:.1f}, n = {found.count}"
        marks += _bar_row(row, stage, found.value, shown, deviation, f"fill-{stage}")
        marks.append(_whisker(row * _ROW + _ROW / 2, found))
    return svg("Accuracy by stage", WIDTH, _ROW * len(accuracy), marks)


def size_bars(sizes: Sizes) -> Markup:
    """Bytes of the dense checkpoint and of the artifact, from 0."""
    known = {name: size for name, size in (("dense", sizes.dense), ("artifact", sizes.artifact)) if size}
    largest = max(known.values())
    marks = []
    for row, (name, size) in enumerate(known.items()):
        beside = f"{100 * size / sizes.dense:.0f}% of dense" if name == "artifact" and sizes.dense else ""
        marks += _bar_row(row, name, size / largest, f"{size / 1e6:,.2f} MB", beside, f"fill-{name}")
    return svg("Size on disk", WIDTH, _ROW * len(known), marks)


def _bar_row(row: int, name: str, share: float, value: str, beside: str, style: str) -> list[Markup]:
    top, middle = row * _ROW + (_ROW - _BAR) / 2, row * _ROW + _ROW / 2 + 4
    return [
        text(0, middle, name, "name"),
        rectangle(_LABELS, top, _bar_length(1), _BAR, "track"),
        rectangle(_LABELS, top, _bar_length(share), _BAR, style, f"{name}: {value}"),
        text(WIDTH - 112, middle, value, "value", "end"),
        text(WIDTH - 100, middle, beside),
    ]


def _bar_length(share: float) -> float:
    return share * (WIDTH - _LABELS - _VALUES)


def _whisker(middle: float, found: Accuracy) -> Markup:
    low, high = (_LABELS + _bar_length(found.value + sign * found.standard_error) for sign in (-1, 1))
    path = f"M{low:.1f} {middle - 5}v10m0 -5H{high:.1f}m0 -5v10"
    return Markup('<path class="whisker" d="{}"/>').format(path)


def accuracy_by_kind(accuracy: dict[Stage, Accuracy]) -> Markup:
    """A row per type of question; a dot per stage, with its standard error as a line."""
    kinds = sorted({kind for found in accuracy.values() for kind in found.by_kind})
    shares = [found.by_kind[kind] for found in accuracy.values() for kind in kinds if kind in found.by_kind]
    lowest = min(share.value - share.standard_error for share in shares)
    axis_low = max(0.0, math.floor(10 * lowest - 0.2) / 10)
    height = _ROW * len(kinds) + 22
    scale = (WIDTH - _LABELS - 14) / (1 - axis_low)
    marks = []
    for tenth in range(round(10 * axis_low), 11):
        x = _LABELS + (tenth / 10 - axis_low) * scale
        marks.append(Markup('<path class="grid" d="M{} 0V{}"/>').format(round(x, 1), height - 20))
        marks.append(text(x, height - 4, f"{10 * tenth}%", "", "middle"))
    for row, kind in enumerate(kinds):
        marks.append(text(0, row * _ROW + _ROW / 2 + 4, kind, "name"))
        for offset, (stage, found) in enumerate(accuracy.items()):
            if kind in found.by_kind:
                y = row * _ROW + _ROW / 2 + 4.5 * (offset - (len(accuracy) - 1) / 2)
                marks.append(_dot(found.by_kind[kind], stage, kind, y, axis_low, scale))
    return svg("Accuracy by type of question", WIDTH, height, marks)


def _dot(share: Accuracy, stage: Stage, kind: str, y: float, axis_low: float, scale: float) -> Markup:
    low, middle, high = (
        _LABELS + (min(max(share.value + sign * share.standard_error, axis_low), 1.0) - axis_low) * scale
        for sign in (-1, 0, 1)
    )
    tip = f"{kind}, {stage}: {100 * share.value:.1f}% ± {100 * share.standard_error:.1f} (n = {share.count})"
    return Markup(
        '<g class="on-{}"><title>{}</title><path class="spread" d="M{:.1f} {}H{:.1f}"/>'
        '<circle cx="{:.1f}" cy="{}" r="3.4"/></g>'
    ).format(stage, tip, low, y, high, middle, y)


def histogram(distribution: Distribution, metric: LatencyMetric, goals: dict[str, float]) -> Markup:
    """Requests by latency, with median, p95 and the targets (text to ms) marked. Outliers are told, not drawn."""
    axis, hidden = _latency_axis(distribution)
    step = (axis.high - axis.low) / _BINS
    counts = [0] * _BINS
    for value in distribution.values:
        if value <= axis.high:
            counts[min(int((value - axis.low) / step), _BINS - 1)] += 1
    headroom = Axis.from_zero([1.25 * max(counts)], wanted=4)  # for the words beside the markers
    plot = Plot(f"{metric.upper()} histogram", axis, headroom, _PANEL, 190)
    for index, count in enumerate(counts):
        if count:
            low = axis.low + index * step
            plot.bar(low, low + step, count, f"{low:.1f} to {low + step:.1f} ms: {count} requests")
    for row, (name, percent) in enumerate((("p50", 50), ("p95", 95))):
        if (quantile := distribution.percentile(percent)) is not None:
            plot.vertical(quantile, f"{name} {_ms(quantile)}", "quantile", row)
    for row, (goal_name, goal) in enumerate(goals.items(), 2):
        plot.vertical(goal, goal_name, "goal", row)
    beyond = Markup("<figcaption>{} slower than {} are not drawn</figcaption>").format(hidden, _ms(axis.high))
    return plot.render() + (beyond if hidden else Markup(""))


def cumulative(distribution: Distribution, metric: LatencyMetric, goals: dict[str, float]) -> Markup:
    """Share of all requests answered within a time; where some failed it ends below 100%."""
    axis, _ = _latency_axis(distribution)
    shown = [value for value in distribution.values if value <= axis.high]
    stride = max(1, len(shown) // _CDF_POINTS)
    ranks = sorted({*range(stride - 1, len(shown), stride), len(shown) - 1})
    points = [(axis.low, 0.0), *((shown[rank], (rank + 1) / distribution.count) for rank in ranks)]
    plot = Plot(f"{metric.upper()} cumulative share", axis, Axis.share(), _PANEL, 170)
    plot.steps(points, "main")
    for row, (name, goal) in enumerate(goals.items(), 6):  # low enough to leave the curve's shoulder free
        plot.vertical(goal, name, "goal", row)
    return plot.render()


def _latency_axis(distribution: Distribution) -> tuple[Axis, int]:
    """A range that a few stragglers do not stretch, and how many lie beyond it."""
    whole = Distribution(distribution.values)
    middle, late = whole.percentile(50), whole.percentile(99)
    assert middle is not None
    assert late is not None
    limit = late + 0.5 * max(late - middle, 0.02 * late)
    shown = [value for value in whole.values if value <= limit]
    return Axis.around([shown[0], shown[-1]], "ms", wanted=4), len(whole.values) - len(shown)


def timeline(run: Run) -> Markup:
    """Every request where it was sent: TTFT and E2E, failures along the top."""
    sent = [request.start for request in run.requests]
    ends = {metric: [(r.start, r.latency(metric)) for r in run.requests] for metric in ("ttft", "e2e")}
    known = {metric: [(at, ms) for at, ms in points if ms is not None] for metric, points in ends.items()}
    y_axis = Axis.from_zero((ms for _, ms in known["e2e"]), wanted=4)
    plot = Plot("Latency over the run", Axis.from_zero(sent, "seconds since the first request", 10), y_axis, WIDTH, 210)
    plot.dots(known["e2e"], "e2e")
    plot.dots(known["ttft"], "ttft")
    plot.dots([(r.start, y_axis.high) for r in run.requests if r.error], "failed")
    return plot.render()


def search_curve(search: SearchHistory) -> Markup:
    """J after every generation, of the best policy and of the uniform one to beat; on the right both on other samples.

    Where a projector was accepted there is a dot: J of both falls there, because the model beneath them is another.
    """
    best, uniform = list(enumerate(search.best, 1)), list(enumerate(search.uniform, 1))
    held_out = {"searched": search.validation_searched, "uniform": search.validation_uniform}
    known = {name: value for name, value in held_out.items() if value is not None}
    count = len(best)
    axis = Axis(0.5, 1.4 * count + 1, "generation", tuple(_whole_ticks(count)))
    values = Axis.around([*search.best, *search.uniform, *known.values()], wanted=4)
    plot = Plot("Search history", axis, values, WIDTH)
    plot.steps(uniform, "reference")
    plot.note(1.01 * count, search.uniform[-1], "uniform", "reference", drop=4)
    plot.steps(best, "main")
    plot.dots(best, "main")
    plot.note(1.01 * count, search.best[-1], "best", "main", drop=4)
    plot.dots([best[index - 1] for index in search.accepted], "accepted")
    if search.accepted:
        # The curve falls, so that the corner beneath its start is free.
        plot.note(1, values.low, "● projector accepted", "accepted", drop=-7)
    for name, value in known.items():
        style = "main" if name == "searched" else "reference"
        plot.dots([(1.14 * count, value)], f"{style} held-out")
        plot.note(1.155 * count, value, f"{name}, held out: {value:.3g}", style, drop=4)
    if search.eta_chosen:
        plot.vertical(search.eta_chosen, f"eta = {search.eta:g}", "reference")
    return plot.render()


def write_plot(picture: Markup, path: Path) -> None:
    """As an SVG file that stands alone; the whole file or, when the disk is full, nothing new."""
    style_sheet = files(__package__).joinpath("plots.css").read_text(encoding="utf-8")
    with new_file(path) as file:
        file.write_text(standalone(picture, style_sheet), encoding="utf-8")


def restoration_curve(losses: Sequence[Loss]) -> Markup:
    """Training loss, as measured in faint, and a running mean over a twentieth of the steps."""
    points = [(float(loss.step), loss.loss) for loss in losses]
    window = max(1, len(points) // 20)
    means = [
        (points[end - 1][0], math.fsum(value for _, value in points[end - window : end]) / window)
        for end in range(window, len(points) + 1)
    ]
    last = max(points[-1][0], 1.0)
    plot = Plot(
        "Restoration", Axis.from_zero([last], "step", 8), Axis.from_zero(loss.loss for loss in losses), WIDTH, 210
    )
    plot.line(points, "faint")
    plot.line(means, "main")
    return plot.render()


def heat_map(layers: Sequence[LayerSparsity]) -> Markup:
    """Matrices of one tower: a row per kind of matrix, a column per block; the darker, the sparser."""
    places = [_place(layer.name) for layer in layers]
    rows = list(dict.fromkeys(row for row, _ in places))
    columns = max(column for _, column in places) + 1
    cell = min(46, (WIDTH - _LABELS) / columns)
    marks = [text(0, row * 24 + 16, name, "name") for row, name in enumerate(rows)]
    for layer, (row_name, column) in zip(layers, places, strict=True):
        x, y = _LABELS + column * cell, rows.index(row_name) * 24
        tip = f"{layer.name}: {100 * layer.sparsity:.1f}% removed, {layer.rows} x {layer.columns}, {layer.pattern}"
        tip += f", {layer.values}" if layer.values else ""
        marks.append(rectangle(x, y, cell - 2, 22, "heat", tip, 0.06 + 0.94 * layer.sparsity))
        if cell >= 30:
            shade = "on-dark" if layer.sparsity > 0.5 else ""
            marks.append(text(x + cell / 2 - 1, y + 15, f"{100 * layer.sparsity:.0f}", f"inside {shade}", "middle"))
    if columns > 1:
        every = math.ceil(columns / 24)
        marks += [
            text(_LABELS + (column + 0.5) * cell - 1, 24 * len(rows) + 14, str(column), "", "middle")
            for column in range(0, columns, every)
        ]
    return svg("Sparsity per matrix", WIDTH, 24 * len(rows) + 20, marks)


def _place(name: str) -> tuple[str, int]:
    """(kind of matrix, block) of a matrix: "...layers.3.mlp.fc1" stands in row "fc1", column 3."""
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdigit()), 0)
    return parts[-1], block


def _whole_ticks(count: int) -> list[float]:
    step = max(1, math.ceil(count / 12))
    return [float(tick) for tick in range(step, count + 1, step)]


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def known_accuracy(report: Report) -> dict[Stage, Accuracy]:
    """The stages that were measured, in the order of the data path."""
    return {stage: found for stage in STAGES if (found := report.accuracy.get(stage)) is not None}
