"""Small plots as inline SVG: axes with round ticks, lines, bars, steps. Knows figures, not what they mean.

Colours are classes of the page's style sheet, so that a plot reads in both themes. Texts are escaped by Markup.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34


def round_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    span = high - low
    if span <= 0:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10(span / wanted))
    steps = [factor * magnitude for factor in (1, 2, 5, 10)]
    step = min(steps, key=lambda step: abs(span / step - wanted))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """Short enough for a tick."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """A range in the data's unit; `label` names quantity and unit."""

    low: float
    high: float
    label: str = ""
    ticks: tuple[float, ...] = ()
    percent: bool = False

    @staticmethod
    def from_zero(values: Iterable[float], label: str = "", wanted: int = 5) -> "Axis":
        """From 0 to a little above the largest value."""
        high = max(values, default=0.0) * 1.04 or 1.0
        return Axis(0.0, high, label, tuple(round_ticks(0.0, high, wanted)))

    @staticmethod
    def around(values: Sequence[float], label: str = "", wanted: int = 5) -> "Axis":
        """Just wide enough for the values."""
        low, high = min(values), max(values)
        room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        return Axis(low - room, high + room, label, tuple(round_ticks(low - room, high + room, wanted)))

    @staticmethod
    def share(label: str = "") -> "Axis":
        """0 to 100%."""
        return Axis(0.0, 1.0, label, (0.0, 0.25, 0.5, 0.75, 1.0), percent=True)

    def tick_text(self, value: float) -> str:
        return f"{100 * value:g}%" if self.percent else number(value)


@dataclass
class Plot:
    """A canvas in pixels that grows mark by mark and ends as one <svg>."""

    title: str
    x_axis: Axis
    y_axis: Axis
    width: int = 880
    height: int = 240
    _marks: list[Markup] = field(default_factory=list)
    _tags: list[Markup] = field(default_factory=list)

    def x(self, value: float) -> float:
        share = (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low)
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low)
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        self._path("M" + " L".join(f"{self.x(x)} {self.y(y)}" for x, y in points), f"line {style}")

    def steps(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line that keeps each value until the next point."""
        path = f"M{self.x(points[0][0])} {self.y(points[0][1])}"
        self._path(path + "".join(f" H{self.x(x)} V{self.y(y)}" for x, y in points[1:]), f"line {style}")

    def dots(self, points: Iterable[tuple[float, float]], style: str) -> None:
        """One path for all of them: thousands of elements would make the page slow."""
        if path := " ".join(f"M{self.x(x)} {self.y(y)}h0" for x, y in points):
            self._path(path, f"dots {style}")

    def bar(self, x_low: float, x_high: float, height: float, tip: str) -> None:
        left, top = self.x(x_low), self.y(height)
        shape = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>')
        width = max(round(self.x(x_high) - left - 1, 1), 0.5)
        self._marks.append(shape.format(left, top, width, round(self.y(0) - top, 1), tip))

    def vertical(self, value: float, words: str, style: str, row: int = 0) -> None:
        """A marker across the plot, its words in line `row` from the top; beyond the axis it is left out."""
        if self.x_axis.low <= value <= self.x_axis.high:
            x = self.x(value)
            self._path(f"M{x} {TOP}V{self.height - BOTTOM}", f"marker {style}")
            place, anchor = (x - 4, "end") if x > self.width * 0.7 else (x + 4, "start")
            self._tags.append(text(place, TOP + 9 + 13 * row, words, f"{style} tag", anchor))

    def horizontal(self, value: float, words: str, style: str) -> None:
        y, right = self.y(value), self.width - RIGHT
        self._path(f"M{LEFT} {y}H{right}", f"marker {style}")
        self._tags.append(text(right, y - 5, words, f"{style} tag", "end"))

    def note(self, x: float, y: float, words: str, style: str, anchor: str = "start", drop: float = 0.0) -> None:
        """Words at a point, `drop` pixels below it."""
        self._tags.append(text(self.x(x), self.y(y) + drop, words, f"{style} tag", anchor))

    def render(self) -> Markup:
        return svg(self.title, self.width, self.height, [*self._axes(), *self._marks, *self._tags])

    def _path(self, path: str, style: str) -> None:
        self._marks.append(Markup('<path class="{}" d="{}"/>').format(style, path))

    def _axes(self) -> Iterable[Markup]:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for tick in self.y_axis.ticks:
            y, text = self.y(tick), self.y_axis.tick_text(tick)
            yield Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y, right)
            yield Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, text)
        for tick in self.x_axis.ticks:
            x, text = self.x(tick), self.x_axis.tick_text(tick)
            yield Markup('<path class="axis" d="M{} {}v4"/>').format(x, bottom)
            yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 16, text)
        yield Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, bottom, right)
        label = Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>')
        yield label.format(right, self.height - 4, self.x_axis.label)


def standalone(picture: Markup, style_sheet: str) -> str:
    """A picture as a file of its own, in the theme of whoever looks at it."""
    style = f"<style>{style_sheet}\nsvg {{ background: var(--paper); font-family: system-ui, sans-serif; }}</style>"
    head, _, rest = str(picture).partition(">")
    return head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + ">" + style + rest + "\n"


def svg(title: str, width: int, height: int, marks: Iterable[Markup]) -> Markup:
    """A picture that scales with its column; `title` is what a screen reader says."""
    head = Markup('<svg viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">')
    return head.format(width, height, width, title) + Markup("").join(marks) + Markup("</svg>")


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> Markup:
    shape = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>')
    return shape.format(style, round(x, 1), round(y, 1), anchor, escape(words))


def rectangle(
    x: float, y: float, width: float, height: float, style: str, tip: str = "", opacity: float = 1.0
) -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>')
    sides = (round(value, 1) for value in (x, y, max(width, 0), max(height, 0)))
    return shape.format(style, *sides, round(opacity, 3), tip)
