"""Tables: each cell a number with its place in the report, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

from models.report import FilePair, Latency, Measurement, Report
from models.report_page import words
from models.report_page.markup import Child, Html, element
from models.report_page.numbers import Form, count, decibels, large, metric, milliseconds, number, percent, size, times

_COUNTS: tuple[tuple[str, str, Form], ...] = (
    ("parameters", "Parameters", large),
    ("nonzero_parameters", "of these not zero", large),
    ("macs", "Multiply-accumulates a sample", large),
    ("file_size_bytes", "File size", size),
    ("file_size_gzip_bytes", "File size after gzip", size),
)


def table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Html],
    *,
    left: frozenset[int] = frozenset({0}),
    tall: bool = False,
) -> Html:
    """A table that scrolls by itself where the page is too narrow, or, if `tall`, the table too long."""
    head = [
        element("th", heading, scope="col", class_="left" if place in left else None)
        for place, heading in enumerate(headings)
    ]
    whole = element("table", element("caption", caption), element("thead", element("tr", head)), element("tbody", rows))
    kind = "scroll tall" if tall else "scroll"
    return element("div", whole, class_=kind, role="region", aria_label=caption, tabindex="0")


def row(heading: Child, *cells: Child) -> Html:
    """Cells that are not `td` elements yet become such."""
    done = [cell if isinstance(cell, Html) and cell.startswith("<td") else element("td", cell) for cell in cells]
    return element("tr", element("th", heading, scope="row"), done)


def before_and_after(pair: FilePair, place: int) -> Html:
    """The original and the compressed network in one format, every number of the report's `Measurement`."""
    before, after = pair.original, pair.compressed
    at = f"/files/{place}"
    rows = [*_metric_rows(before, after, at), _agreement(before, after, at)]
    for field, label, form in _COUNTS:
        rows.append(_compared(before, after, at, field, label, form))
    for field in ("p50", "p95"):
        rows.append(_latency_row(before, after, at, field))
    rows.append(_compared(before, after, at, "peak_memory_bytes", "Peak memory, above the bare runtime", size))
    caption = f"Before and after, {after.file or words.FORMAT_NAMES[pair.format]}"
    return table(caption, ("", "original", "compressed", "change"), rows)


def original_alone(report: Report) -> Html:
    """Of a job that changes nothing: what the engine measured."""
    before = report.original
    rows = []
    for name, value in (before.metrics or {}).items():
        place = number(value.value, metric, f"/original/metrics/{name}/value")
        rows.append(row([words.words(name).capitalize(), _of(value.n, value.split)], place))
    for field, label, form in _COUNTS:
        rows.append(row(label, _cell(before, "/original", field, form)))
    return table("The original, as the engine sees it", ("", "original"), rows)


def _metric_rows(before: Measurement, after: Measurement, at: str) -> list[Html]:
    if not after.metrics:
        return [row("Metric", *(_reason(side, "metrics") for side in (before, after)), "")]
    rows = []
    for name, value in after.metrics.items():
        was = (before.metrics or {}).get(name)
        first = None if was is None else number(was.value, metric, f"{at}/original/metrics/{name}/value")
        rows.append(
            row(
                [words.words(name).capitalize(), _of(value.n, value.split)],
                first or _reason(before, "metrics"),
                number(value.value, metric, f"{at}/compressed/metrics/{name}/value"),
                "" if was is None else words.metric_change(was.value, value.value),
            )
        )
    return rows


def _of(n: int, split: str) -> Html:
    return element("small", f"{n:,} {split} samples")


def _agreement(before: Measurement, after: Measurement, at: str) -> Html:
    cells = []
    for side, name in ((before, "original"), (after, "compressed")):
        value = side.agreement_with_original
        pointer = f"{at}/{name}/agreement_with_original/value"
        cells.append(
            _reason(side, "agreement_with_original") if value is None else number(value.value, metric, pointer)
        )
    return row("Agreement with the original", *cells, "")


def _compared(before: Measurement, after: Measurement, at: str, field: str, label: str, form: Form) -> Html:
    cells = [_cell(before, f"{at}/original", field, form), _cell(after, f"{at}/compressed", field, form)]
    return row(label, *cells, change(getattr(before, field), getattr(after, field)))


def _cell(side: Measurement, at: str, field: str, form: Form) -> Child:
    value = getattr(side, field)
    if value is None:
        return _reason(side, field)
    shown = number(value, form, f"{at}/{field}")
    return [shown, element("small", count(value))] if form in (size, large) and value >= 1e6 else shown


def _latency_row(before: Measurement, after: Measurement, at: str, field: str) -> Html:
    cells: list[Child] = []
    for side, name in ((before, "original"), (after, "compressed")):
        if side.latency_ms is None:
            cells.append(_reason(side, "latency_ms"))
        else:
            value: float = getattr(side.latency_ms, field)
            cells.append(number(value, milliseconds, f"{at}/{name}/latency_ms/{field}"))
    values = [None if side.latency_ms is None else getattr(side.latency_ms, field) for side in (before, after)]
    label = "Latency, median" if field == "p50" else "Latency, 95 % stay below"
    found = after.latency_ms or before.latency_ms
    return row([label, None if found is None else _conditions(found)], *cells, change(*values))


def _conditions(latency: Latency) -> Html:
    threads = words.plural(latency.threads, "thread")
    return element("small", f"{latency.runtime}, batch {latency.batch}, {threads}, {latency.samples} calls")


def change(before: float | None, after: float | None) -> str:
    """`4.00× less`, `1.20× more`, or that there is none."""
    if not before or not after:
        return ""
    if before == after:
        return "the same"
    if max(before, after) < min(before, after) * 1.005:
        return "nearly the same"
    return f"{times(before, after)} less" if after < before else f"{times(after, before)} more"


def _reason(side: Measurement, field: str) -> Html:
    return element("td", f"– ({words.missing(side, field)})", class_="wrap soft")


def verification(report: Report) -> Html:
    rows = []
    for place, found in enumerate(report.verification):
        at = f"/verification/{place}"
        agreement = found.top1_agreement_vs_engine
        noise = found.sqnr_db_vs_engine
        rows.append(
            row(
                found.artifact,
                element("td", found.runtime, class_="wrap"),
                "yes" if found.reloaded else "no",
                number(found.max_abs_diff_vs_engine, "{:.3g}".format, f"{at}/max_abs_diff_vs_engine"),
                "–" if noise is None else number(noise, decibels, f"{at}/sqnr_db_vs_engine"),
                "–" if agreement is None else number(agreement, percent, f"{at}/top1_agreement_vs_engine"),
            )
        )
    headings = ("file", "opened by", "reloaded", "largest difference", "signal to noise", "same answer")
    return table("Each file in a fresh process, against the engine", headings, rows, left=frozenset({0, 1}))
