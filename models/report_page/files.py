"""Of each pair of files: where the bytes are, and how the calls' times are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.report import Content, FilePair, Latency
from models.report_page import charts
from models.report_page.markup import Child, Html, element
from models.report_page.numbers import digits, number, size
from models.report_page.tables import change, row, table

_MOST_GROUPS = 16
_FEWEST_GROUPS = 4
_NO_LAYER = "graph, names and constants"


def sizes(pair: FilePair) -> list[Child]:
    """Bytes by type of number, and by part of the network."""
    before, after = pair.original.contents, pair.compressed.contents
    if before is None or after is None:
        return []
    kinds = [_summed(side, lambda part: part.dtype) for side in (before, after)]
    names = sorted(set(kinds[0]) | set(kinds[1]), key=lambda name: -max(kinds[0].get(name, 0), kinds[1].get(name, 0)))
    style = {name: f"s{min(place, 5) + 1}" for place, name in enumerate(names)}
    longest = max(sum(side.values()) for side in kinds) or 1
    drawn = []
    for label, side in zip(("original", "compressed"), kinds, strict=True):
        parts = [(style[name], f"{name}: {size(side[name])}", side[name] / longest) for name in names if name in side]
        drawn.append(element("p", element("span", f"{label}, {size(sum(side.values()))}", class_="soft")))
        drawn.append(charts.stack(parts))
    legend = element("p", [element("span", name, class_=f"key {style[name]}") for name in names], class_="legend")
    by_kind = [row(name, *_sides(kinds, name)) for name in names]
    groups = _by_group(before, after)
    largest = max((max(sides) for _, sides in groups[: _MOST_GROUPS - 1]), default=0) or 1
    by_group = [row(name, _bar(sides, largest), *_sides_of(sides)) for name, sides in groups]
    return [
        element("figure", element("figcaption", "Bytes by type"), legend, drawn),
        table("Bytes by type", ("", "original", "compressed", "change"), by_kind),
        table("Bytes by part of the network", ("", "", "original", "compressed", "change"), by_group),
    ]


def _bar(sides: tuple[int, int], longest: int) -> Html:
    return element("td", charts.bars([("before", sides[0] / longest), ("after", sides[1] / longest)]), class_="draw")


def _sides(kinds: Sequence[Mapping[str, int]], name: str) -> tuple[str, str, str]:
    return _sides_of((kinds[0].get(name, 0), kinds[1].get(name, 0)))


def _sides_of(sides: tuple[int, int]) -> tuple[str, str, str]:
    before, after = ("–" if value == 0 else size(value) for value in sides)
    return before, after, change(*sides)


def _summed(contents: Sequence[Content], key: object) -> dict[str, int]:
    assert callable(key)
    total: dict[str, int] = {}
    for part in contents:
        total[key(part)] = total.get(key(part), 0) + part.size_bytes
    return total


def _by_group(before: Sequence[Content], after: Sequence[Content]) -> list[tuple[str, tuple[int, int]]]:
    """(part, bytes before and after), the largest first, the small ones together. Parts are layers by as much of their
    dotted names as makes a few of them."""
    depth = 1
    deepest = max((part.layer.count(".") + 1 for part in before if part.layer), default=1)
    while depth < deepest and len({_part(content, depth) for content in before if content.layer}) < _FEWEST_GROUPS:
        depth += 1
    sums = [_summed(side, lambda content, depth=depth: _part(content, depth)) for side in (before, after)]
    rows = [(name, (sums[0].get(name, 0), sums[1].get(name, 0))) for name in dict.fromkeys([*sums[0], *sums[1]])]
    rows.sort(key=lambda item: -max(item[1]))
    if len(rows) <= _MOST_GROUPS:
        return rows
    rest = rows[_MOST_GROUPS - 1 :]
    small = (sum(sides[0] for _, sides in rest), sum(sides[1] for _, sides in rest))
    return [*rows[: _MOST_GROUPS - 1], (f"{len(rest)} smaller parts", small)]


def _part(content: Content, depth: int) -> str:
    return _NO_LAYER if content.layer is None else ".".join(content.layer.split(".")[:depth])


def latencies(pair: FilePair, place: int) -> list[Child]:
    """How the calls' times are spread: drawn, and the numbers."""
    both = [("original", pair.original.latency_ms), ("compressed", pair.compressed.latency_ms)]
    known = [(name, found) for name, found in both if found is not None and len(found.quantiles) == 21]
    if not known:
        return []
    longest = max(min(found.quantiles[20], 1.5 * found.quantiles[19]) for _, found in known) or 1.0
    styles = {"original": "before", "compressed": "after"}
    drawn = charts.ranges([(styles[name], found.quantiles) for name, found in known], longest)
    shown = (("fastest", 0), ("5 %", 1), ("25 %", 5), ("median", 10), ("75 %", 15), ("95 %", 19), ("slowest", 20))
    rows = [row(name, *[_quantile(found, name, place, at) for _, at in shown]) for name, found in known]
    legend = element("p", [element("span", name, class_=f"key {styles[name]}") for name, _ in known], class_="legend")
    axis = f"From 0 to {digits(longest)} ms: thin all calls, pale 5 to 95 %, thick 25 to 75 %, the mark the median"
    return [
        element("figure", element("figcaption", axis), legend, drawn),
        table("Milliseconds a call, the files taking turns", ("", *[label for label, _ in shown]), rows),
    ]


def _quantile(latency: Latency, side: str, place: int, at: int) -> Html:
    return number(latency.quantiles[at], digits, f"/files/{place}/{side}/latency_ms/quantiles/{at}")
