"""Drawings in SVG that keep their text readable at any width: places are shares of the width, heights are pixels.

Nothing is styled by attributes, which the page's policy forbids: classes say what a part is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.report_page.markup import Html, element

_HEIGHT = 190
_TOP, _BOTTOM = 26, 26
_LEFT, _RIGHT = 2.0, 98.0
_MOST_POINTS = 200


@dataclass(frozen=True)
class Line:
    """`points` are (x, y); `style` names a colour of the style sheet, `before` or `after`."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    x: float
    label: str


def line_chart(title: str, lines: Sequence[Line], form: Callable[[float], str], ticks: Sequence[Tick]) -> Html | None:
    """Lines over one axis; the label of a grid line stands on it. `None` where there is nothing to draw."""
    lines = [Line(line.name, line.style, _thinned(line.points)) for line in lines if line.points]
    values = [y for line in lines for _, y in line.points]
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    first = min(x for line in lines for x, _ in line.points)
    last = max(x for line in lines for x, _ in line.points)

    def across(x: float) -> str:
        share = 0.5 if last == first else (x - first) / (last - first)
        return f"{_LEFT + share * (_RIGHT - _LEFT):.2f}%"

    def down(y: float) -> str:
        return f"{_TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    parts: list[Html] = []
    for share in (0.0, 0.5, 1.0):
        y = low + margin + share * (high - low - 2 * margin)
        parts.append(element("line", class_="grid", x1="0", x2="100%", y1=down(y), y2=down(y)))
    for line in lines:
        for (x1, y1), (x2, y2) in zip(line.points, line.points[1:], strict=False):
            parts.append(
                element("line", class_=f"stroke {line.style}", x1=across(x1), y1=down(y1), x2=across(x2), y2=down(y2))
            )
        if len(line.points) <= 60:
            for x, y in line.points:
                tip = element("title", f"{line.name}: {form(y)}")
                parts.append(element("circle", tip, class_=f"fill {line.style}", cx=across(x), cy=down(y), r="3"))
    for share in (0.0, 1.0) if low + margin == high - margin else (0.0, 0.5, 1.0):
        y = low + margin + share * (high - low - 2 * margin)
        parts.append(element("text", form(y), class_="label", x="0", y=f"{float(down(y)) - 4:.1f}"))
    for tick in ticks:
        where = across(tick.x)
        place = float(where[:-1])
        anchor = "start" if place < 5 else "end" if place > 95 else "middle"
        parts.append(element("text", tick.label, class_=f"label {anchor}", x=where, y=str(_HEIGHT - 8)))
    legend = element("p", [element("span", line.name, class_=f"key {line.style}") for line in lines], class_="legend")
    drawing = element("svg", *parts, class_="chart", height=_HEIGHT, role="img", aria_label=_spoken(title, lines, form))
    return element("figure", element("figcaption", title), legend, drawing)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Every so many of a long line, its end in any case."""
    step = -(-len(points) // _MOST_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _spoken(title: str, lines: Sequence[Line], form: Callable[[float], str]) -> str:
    """The alternative text: where each line begins and ends."""
    ends = [f"{line.name} from {form(line.points[0][1])} to {form(line.points[-1][1])}" for line in lines]
    return f"{title}: {'; '.join(ends)}"


def bars(rows: Sequence[tuple[str, float]]) -> Html:
    """Bars (style, share of the width) on top of each other, the first at the back. Numbers stand beside them, so they
    are hidden from screen readers."""
    drawn = [
        element("rect", class_=f"fill {style}", width=_width(share), height=12 if place == 0 else 6, y=3 * place)
        for place, (style, share) in enumerate(rows)
    ]
    return element("svg", *drawn, class_="bar", height=12, aria_hidden="true", focusable="false")


def stack(parts: Sequence[tuple[str, str, float]]) -> Html:
    """(style, tip, share of the width) one after another, on one bar; shown to who sees, the numbers stand beside."""
    begin, drawn = 0.0, []
    for style, tip, share in parts:
        drawn.append(
            element("rect", element("title", tip), class_=style, x=_width(begin), width=_width(share), height=18)
        )
        begin += share
    return element("svg", *drawn, class_="bar", height=18, aria_hidden="true", focusable="false")


def column_chart(title: str, values: Sequence[tuple[str, float | None]], highest: float, spoken: str) -> Html:
    """A column for each (tip, value): so many that they touch are still a silhouette."""
    height = 84
    width = 100 / max(len(values), 1)
    drawn = []
    for place, (tip, value) in enumerate(values):
        share = 0.0 if value is None or highest <= 0 else max(0.0, min(1.0, value / highest))
        tall = share * (height - 2)
        drawn.append(
            element(
                "rect",
                element("title", tip),
                class_="fill after" if value is not None else "fill none",
                x=_percent(place * width),
                width=_percent(width * (0.8 if len(values) <= 100 else 1.0)),
                y=f"{height - tall:.1f}",
                height=f"{tall:.1f}",
            )
        )
    drawn.append(element("line", class_="grid", x1="0", x2="100%", y1=str(height), y2=str(height)))
    drawing = element("svg", *drawn, class_="chart", height=height + 1, role="img", aria_label=spoken)
    return element("figure", element("figcaption", title), drawing)


def ranges(rows: Sequence[tuple[str, Sequence[float]]], longest: float) -> Html:
    """For each (style, quantiles from least to most): all that was measured as a line, 5 to 95 % as a bar, 25 to 75 %
    as a thick one, the median as a mark. `longest` is the right end."""
    drawn: list[Html] = []
    for place, (style, values) in enumerate(rows):
        middle = 14 + 28 * place

        def span(begin: float, end: float, tall: int, kind: str, middle: int = middle, style: str = style) -> Html:
            left, right = (min(1.0, value / longest) for value in (begin, end))
            return element(
                "rect",
                class_=f"{kind} {style}",
                x=_width(left),
                width=_width(max(right - left, 0.002)),
                y=f"{middle - tall / 2:g}",
                height=tall,
            )

        last = len(values) - 1
        drawn += [
            span(values[0], values[last], 2, "fill"),
            span(values[last // 20], values[last * 19 // 20], 10, "fill pale"),
            span(values[last // 4], values[last * 3 // 4], 18, "fill"),
            span(values[last // 2], values[last // 2], 24, "mark"),
        ]
    return element("svg", *drawn, class_="bar", height=28 * len(rows), aria_hidden="true", focusable="false")


def _width(share: float) -> str:
    return _percent(100 * max(0.0, min(1.0, share)))


def _percent(value: float) -> str:
    return f"{value:.2f}%"
