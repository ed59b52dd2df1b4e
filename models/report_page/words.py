"""What the numbers say, in sentences: smaller or not, faster or not, as good or not."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.metrics import METRICS
from models.report import Cause, FilePair, Measurement, MetricValue, Report
from models.report_page.markup import Child, element, joined
from models.report_page.numbers import metric, milliseconds, percent, size, times

CAUSES: dict[Cause, str] = {
    "no_data": "no data was given",
    "no_labels": "the data has no labels",
    "no_such_device": "there was no such device",
    "runtime_cannot_run_it": "the runtime cannot run it",
    "not_measured_at_this_step": "measured on finished files only",
}
NOTICEABLE = 1.05
"""Latencies and sizes closer than this are called the same."""

_SHARES = frozenset({"accuracy", "top5_accuracy", "agreement"})
"""Metrics that are a share of samples, so that chance on few of them can be told."""


def missing(measurement: Measurement | None, field: str) -> str:
    """Why a number is not there."""
    cause = None if measurement is None else measurement.reasons.get(field)
    return "not measured" if cause is None else CAUSES[cause]


def headline(report: Report) -> list[Child]:
    """Sentences about the first file, the best that can be said honestly; the strong parts are elements."""
    if not report.files:
        return ["No step of this job changes the network: it says how sensitive each part is, and gives no file back."]
    pair = report.files[0]
    return [
        *_size_and_speed(pair),
        " ",
        *_quality(pair.original, pair.compressed),
        *_smallest(report.files),
    ]


def _smallest(pairs: Sequence[FilePair]) -> list[Child]:
    """Where a later file is notably smaller than the first: how small."""
    first, *others = [
        (pair.compressed.file_size_bytes, pair.original.file_size_bytes, FORMAT_NAMES[pair.format])
        for pair in pairs
        if pair.compressed.file_size_bytes and pair.original.file_size_bytes
    ] or [(0, 0, "")]
    after, before, name = min(others, key=lambda sizes: sizes[0], default=first)
    if after * NOTICEABLE > first[0]:
        return []
    return [f" As {name} it is ", _compared(before, after, "smaller", "larger"), f" ({size(before)} → {size(after)})."]


def plain_headline(report: Report) -> str:
    """The same without markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", joined(headline(report))))


def _size_and_speed(pair: FilePair) -> list[Child]:
    before, after = pair.original, pair.compressed
    said: list[Child] = [f"As {FORMAT_NAMES[pair.format]} the network is "]
    if before.file_size_bytes is not None and after.file_size_bytes is not None:
        sizes = f" ({size(before.file_size_bytes)} → {size(after.file_size_bytes)})"
        said += [_compared(before.file_size_bytes, after.file_size_bytes, "smaller", "larger"), sizes, " and "]
    if before.latency_ms is None or after.latency_ms is None:
        return [*said, f"its speed is not known: {missing(after, 'latency_ms')}."]
    latency = after.latency_ms
    shown = f"{milliseconds(before.latency_ms.p50)} → {milliseconds(latency.p50)}"
    where = f"{latency.runtime}, {plural(latency.threads, 'thread')}"
    return [
        *said,
        _compared(before.latency_ms.p50, latency.p50, "faster", "slower"),
        f" ({shown} for {plural(latency.batch, 'sample')} in {where}).",
    ]


def _compared(before: float, after: float, better: str, worse: str) -> Child:
    if after * NOTICEABLE <= before:
        return element("strong", f"{times(before, after)} {better}", class_="good")
    if after >= before * NOTICEABLE:
        return element("strong", f"{times(after, before)} {worse}", class_="bad")
    return element("strong", f"not {better}", class_="even")


def _quality(before: Measurement, after: Measurement) -> list[Child]:
    if not after.metrics or not before.metrics:
        agreement = after.agreement_with_original
        if agreement is None:
            return [element("strong", "No data was given"), ": nothing here says how well it still answers."]
        return [
            "It gives the original's answer for ",
            element("strong", percent(agreement.value)),
            f" of {agreement.n} {agreement.split} samples; without labels nothing says how often either is right.",
        ]
    name, value = next(iter(after.metrics.items()))
    was = before.metrics[name]
    return [
        f"{words(name).capitalize()} went from {metric(was.value)} to ",
        element("strong", metric(value.value), class_=_verdict(name, was, value)),
        f" ({metric_change(was.value, value.value)}) on {value.n} {value.split} samples{_chance(name, was, value)}.",
    ]


def metric_change(before: float, after: float) -> str:
    return "unchanged" if before == after else f"{after - before:+.4f}".replace("-", "−")


def _verdict(name: str, before: MetricValue, after: MetricValue) -> str:
    if before.value == after.value:
        return "even"
    higher = name not in METRICS or METRICS[name].higher_is_better
    return "good" if (after.value > before.value) == higher else "bad"


def _chance(name: str, before: MetricValue, after: MetricValue) -> str:
    """Two shares of the same `n` samples differ by less than two standard errors (of independent draws: cautious)."""
    if name not in _SHARES or before.value == after.value:
        return ""
    mean = (before.value + after.value) / 2
    error = math.sqrt(2 * mean * (1 - mean) / after.n)
    return ", no more than chance would give" if abs(before.value - after.value) <= 2 * error else ""


FORMAT_NAMES: Mapping[str, str] = {"onnx": "ONNX", "pt2": "a .pt2 program", "safetensors": "packed safetensors"}


def words(name: str) -> str:
    return name.replace("_", " ")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def deciding_metric(report: Report, spec: Mapping[str, Any]) -> str:
    """The metric that steps are judged by: what the spec names, else the first that was measured."""
    data = spec.get("data")
    named = data.get("metric") if isinstance(data, dict) else None
    after = [step.after.metrics for step in report.steps if step.after.metrics]
    measured = list(after[0]) if after and after[0] else []
    return named if named in (*measured, "agreement") else (measured or ["agreement"])[0]
