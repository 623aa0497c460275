"""Draws charts as SVG whose text keeps its size at any width, with colours that the page sets.

Positions are percentages of the plot, so the plot stretches and text, dots and lines do not: only
lines and bands lie in a nested drawing that is stretched, with strokes that do not scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from featherfed.report.template import fill

Point = tuple[float, float]
Span = tuple[float, float, float]
"""x, and the lowest and the highest y there."""

COLORS = 6
"""How many colours a page has; `color` of a mark counts from 0 and begins again after them."""
_UNIT = 1000
"""Width and height of the stretched drawing."""
_FILE_WIDTH = 740
_LARGEST = 1e300
"""Axes end before it, or their ends would not be finite."""


@dataclass(frozen=True)
class Line:
    """Points joined in order; where a value is not finite the line is broken.

    `end`: a text at the last point.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dashed: bool = False
    dots: bool = True
    end: str = ""
    value: Callable[[float], str] = "{:g}".format
    """Writes a y value."""


@dataclass(frozen=True)
class Dots:
    """Points that are not joined."""

    name: str
    points: Sequence[Point]
    color: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """A range of values over x."""

    name: str
    spans: Sequence[Span]
    color: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


@dataclass(frozen=True)
class Bars:
    """Upright bars from `low` to `high` at each x, `width` wide in its unit."""

    name: str
    spans: Sequence[Span]
    color: int = 0
    width: float = 0.7


@dataclass(frozen=True)
class Lanes:
    """Lying bars at each y: (y, from, to), in x; half a unit thick."""

    name: str
    spans: Sequence[Span]
    color: int = 0


Mark = Line | Dots | Band | Level | Bars | Lanes


@dataclass(frozen=True)
class Axis:
    """The values that an axis shows from `low` to `high`, and its ticks with their texts."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the lowest and 1 at the highest, and not beyond them."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = (math.log10(max(v, 1e-300)) for v in (low, high, value))
        return min(1.0, max(0.0, (value - low) / ((high - low) or 1)))


@dataclass(frozen=True)
class Chart:
    """A chart; `key` names it in the page and as a file, `description` says what it shows."""

    key: str
    title: str
    description: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    height: int = 230
    down: bool = False
    """Whether y grows downwards, as rows of a list do."""

    def html(self) -> Markup:
        """Return the chart as a figure of a page, with a legend if it has more than one mark."""
        svg = Markup(
            '<svg class="chart" role="img" aria-labelledby="{key}-t {key}-d" height="{height}">'
            '<title id="{key}-t">{title}</title><desc id="{key}-d">{text}</desc>{body}</svg>'
        ).format(
            key=self.key,
            height=self.height,
            title=self.title,
            text=self.description,
            body=self._body(),
        )
        label = Markup('<p class="axis">{}</p>').format(self.x.label) if self.x.label else ""
        return Markup(
            '<figure class="figure"><figcaption>{}</figcaption>{}<div class="plot">{}</div>{}'
            "</figure>"
        ).format(self.title, self._legend(), svg, label)

    def file(self) -> str:
        """Return the chart as an SVG file of its own."""
        legend, bottom = self._placed_legend()
        top = bottom + 26
        return fill(
            "chart.svg",
            chart=self,
            legend=legend,
            body=self._body(),
            top=top,
            height=top + self.height + 54,
        )

    def _keys(self) -> list[dict[str, str]]:
        """Return name, colour and shape of each mark that the legend names, if it is of use."""
        named = [mark for mark in self.marks if mark.name]
        if len(named) < 2:
            return []
        return [{"name": m.name, "color": _color(m), "shape": _shape(m)} for m in named]

    def _legend(self) -> Markup:
        item = Markup('<li><span class="key {color} {shape}"></span>{name}</li>')
        items = Markup("").join(item.format(**key) for key in self._keys())
        return Markup('<ul class="legend">{}</ul>').format(items) if items else Markup("")

    def _placed_legend(self) -> tuple[list[dict[str, Any]], int]:
        """Return the legend's keys with their places in a file, and where its last line is."""
        placed: list[dict[str, Any]] = []
        x, y = 20, 50
        for key in self._keys():
            width = 50 + 7 * len(key["name"])
            if x > 20 and x + width > _FILE_WIDTH:
                x, y = 20, y + 20
            placed.append({**key, "x": x, "y": y})
            x += width
        return placed, y if placed else 30

    def _body(self) -> Markup:
        """Return axes and marks, to be drawn in an `svg` that shows what lies outside of it."""
        parts = [*self._grid()]
        for mark in self.marks:
            parts += self._mark(mark)
        return Markup("").join(parts)

    def _grid(self) -> Iterable[Markup]:
        for value, text in self.y.ticks:
            y = _percent(self._y(value))
            if not self.down:
                yield Markup('<line class="grid" x2="100%" y1="{0}" y2="{0}"/>').format(y)
            yield Markup('<text x="-8" y="{}" dy="4" text-anchor="end">{}</text>').format(y, text)
        if not self.down:
            yield Markup('<line class="base" x2="100%" y1="100%" y2="100%"/>')
        for value, text in self.x.ticks:
            x = _percent(self.x.place(value))
            if self.down:
                yield Markup('<line class="grid" y2="100%" x1="{0}" x2="{0}"/>').format(x)
            yield Markup('<text x="{}" y="100%" dy="18" text-anchor="middle">{}</text>').format(
                x, text
            )

    def _y(self, value: float) -> float:
        place = self.y.place(value)
        return place if self.down else 1 - place

    def _mark(self, mark: Mark) -> Iterable[Markup]:
        if isinstance(mark, Line):
            yield from self._line(mark)
        elif isinstance(mark, Dots):
            yield from self._dots(mark.points, mark, 3.5, "dot faint" if mark.faint else "dot")
        elif isinstance(mark, Band):
            yield self._band(mark)
        elif isinstance(mark, Level):
            yield Markup('<line class="level" x2="100%" y1="{0}" y2="{0}"/>').format(
                _percent(self._y(mark.y))
            )
        elif isinstance(mark, Bars):
            yield from self._bars(mark)
        else:
            yield from self._lanes(mark)

    def _line(self, line: Line) -> Iterable[Markup]:
        path = "".join(f"M{' L'.join(self._at(p) for p in run)}" for run in _runs(line.points))
        kind = "line dashed" if line.dashed else "line"
        yield _stretched(Markup('<path class="{} {}" d="{}"/>').format(kind, _color(line), path))
        finite = [point for run in _runs(line.points) for point in run]
        if line.dots and len(finite) <= 100:
            radius = 4 if len(finite) < 20 else 2.5
            yield from self._dots(finite, line, radius, "dot", line.value)
        if line.end and finite:
            x, y = finite[-1]
            # On the side that the curve does not come from.
            aside = -10 if y >= finite[0][1] else 20
            yield Markup(
                '<text class="end {}" x="{}" y="{}" dy="{}" text-anchor="{}">{}</text>'
            ).format(
                _color(line), _percent(self.x.place(x)), _percent(self._y(y)), aside,
                "end" if len(finite) > 1 else "middle", line.end,
            )  # fmt: skip

    def _dots(
        self,
        points: Iterable[Point],
        mark: Mark,
        radius: float,
        kind: str,
        text: Callable[[float], str] | None = None,
    ) -> Iterable[Markup]:
        dot = Markup('<circle class="{} {}" cx="{}" cy="{}" r="{}">{}</circle>')
        told = Markup("<title>{}</title>")
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                title = told.format(f"{mark.name}: {text(y)}") if text else ""
                cx, cy = _percent(self.x.place(x)), _percent(self._y(y))
                yield dot.format(kind, _color(mark), cx, cy, radius, title)

    def _band(self, band: Band) -> Markup:
        spans = [span for span in band.spans if all(map(math.isfinite, span))]
        if len(spans) == 1:  # a band of a single x would have no width
            x, low, high = spans[0]
            return Markup('<line class="range {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _color(band), *[_percent(self.x.place(x))] * 2,
                _percent(self._y(low)), _percent(self._y(high)),
            )  # fmt: skip
        around = [(x, low) for x, low, _ in spans] + [(x, high) for x, _, high in reversed(spans)]
        corners = " ".join(map(self._at, around))
        return _stretched(
            Markup('<polygon class="band {}" points="{}"/>').format(_color(band), corners)
        )

    def _bars(self, bars: Bars) -> Iterable[Markup]:
        for x, low, high in bars.spans:
            left, right = (self.x.place(x + side * bars.width / 2) for side in (-1, 1))
            top, bottom = sorted((self._y(low), self._y(high)))
            yield _rectangle(bars, left, top, right, bottom)

    def _lanes(self, lanes: Lanes) -> Iterable[Markup]:
        for y, start, end in lanes.spans:
            top, bottom = (self._y(y + side * 0.25) for side in (-1, 1))
            yield _rectangle(lanes, self.x.place(start), top, self.x.place(end), bottom)

    def _at(self, point: Point) -> str:
        x, y = point
        return f"{_UNIT * self.x.place(x):.1f},{_UNIT * self._y(y):.1f}"


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in runs without a value that is not finite."""
    groups = itertools.groupby(points, lambda p: math.isfinite(p[0]) and math.isfinite(p[1]))
    return [list(run) for finite, run in groups if finite]


def _stretched(content: Markup) -> Markup:
    return Markup(
        '<svg width="100%" height="100%" viewBox="0 0 {0} {0}" preserveAspectRatio="none">{1}</svg>'
    ).format(_UNIT, content)


def _rectangle(mark: Mark, left: float, top: float, right: float, bottom: float) -> Markup:
    return Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
        _color(mark), _percent(left), _percent(top), _percent(right - left), _percent(bottom - top)
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _color(mark: Mark) -> str:
    return "level" if isinstance(mark, Level) else f"c{mark.color % COLORS}"


def _shape(mark: Mark) -> str:
    if isinstance(mark, Line):
        return "dashed" if mark.dashed else "line"
    return {Dots: "dot", Band: "band", Level: "line"}.get(type(mark), "bar")


def linear_axis(
    values: Iterable[float],
    text: Callable[[float], str],
    label: str = "",
    *,
    from_zero: bool = False,
    most: int = 7,
) -> Axis:
    """Return an axis over all finite values, with some air and `most` round steps at most."""
    finite = [value for value in values if abs(value) < _LARGEST]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    air = 0.12 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = (0.0 if from_zero else low - air), high + air
    step = _round_step((high - low) / most)
    first = math.ceil(low / step - 1e-9)
    count = math.floor((high - first * step) / step + 1e-9) + 1
    ticks = [(first + i) * step for i in range(count)]
    return Axis(low, high, [(tick, text(round(tick, 12))) for tick in ticks], label)


def _round_step(at_least: float) -> float:
    """Return 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(at_least)) if at_least > 0 else 1.0
    return next(n * power for n in (1, 2, 5, 10) if n * power >= at_least * (1 - 1e-9))


def decades_axis(values: Iterable[float], text: Callable[[float], str], label: str = "") -> Axis:
    """Return a logarithmic axis of whole powers of ten around the values that are above 0."""
    finite = [value for value in values if 0 < value < _LARGEST] or [1.0]
    low = math.floor(math.log10(min(finite)) - 0.02)
    high = max(low + 1, math.ceil(math.log10(max(finite)) + 0.02))
    step = -(-(high - low) // 6)
    ticks = [10.0**power for power in range(low, high + 1, step)]
    return Axis(10.0**low, 10.0**high, [(t, text(t)) for t in ticks], label, logarithmic=True)


def rounds_axis(rounds: Sequence[int], final: bool = False) -> Axis:
    """Return an axis of whole round numbers, at most seven of them, and "final" after the last."""
    step = next(n for n in _steps() if len(rounds) / n <= (6 if final else 7))
    ticks = list(rounds[::step])
    if final:
        # The word needs the room of its neighbours.
        while len(ticks) > 1 and rounds[-1] + 1 - ticks[-1] < len(rounds) / 7:
            ticks.pop()
    texts = [(float(number), str(number)) for number in ticks]
    if final:
        texts.append((rounds[-1] + 1, "final"))
    return Axis(rounds[0] - 0.5, rounds[-1] + (1.5 if final else 0.5), texts, "round")


def _steps() -> Iterable[int]:
    return (n * 10**power for power in itertools.count() for n in (1, 2, 5))
