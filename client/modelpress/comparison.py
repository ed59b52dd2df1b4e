"""The before/after table of a report."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from modelpress.types import Json


def comparison(report: Json) -> Table:
    """Accuracy, size, work and speed of the original and the compressed network, as the report has them."""
    table = Table(title="Before and after")
    table.add_column("")
    for heading in ("original", "compressed", "change"):
        table.add_column(heading, justify="right")
    for row in rows(report):
        table.add_row(*row)
    return table


def rows(report: Json) -> list[tuple[str, str, str, str]]:
    """(what, original, compressed, change), one for each number that was measured."""
    before, after = report.get("original") or {}, report.get("compressed") or {}
    lines = []
    for name, metric in (after.get("metrics") or {}).items():
        value, was = metric["value"], ((before.get("metrics") or {}).get(name) or {}).get("value")
        heading = f"{name} ({metric['split']}, n={metric['n']})"
        change = "" if was is None else f"{value - was:+.4f}"
        lines.append((heading, _number(was, "{:.4f}"), f"{value:.4f}", change))
    if agreement := after.get("agreement_with_original"):
        lines.append(("agreement with original", "", f"{agreement['value']:.4f}", ""))
    for name, label, form in (
        ("parameters", "parameters", "{:,}"),
        ("nonzero_parameters", "of these not zero", "{:,}"),
        ("macs", "MACs per sample", "{:,}"),
        ("file_size_bytes", "file size, bytes", "{:,}"),
        ("file_size_gzip_bytes", "file size after gzip, bytes", "{:,}"),
        ("peak_memory_bytes", "peak memory, bytes", "{:,}"),
    ):
        lines.append(_ratio_row(label, before.get(name), after.get(name), form))
    latencies = [(side.get("latency_ms") or {}) for side in (before, after)]
    if latencies[1]:
        where = f"{latencies[1].get('runtime')}, batch {latencies[1].get('batch')}"
        for share in ("p50", "p95"):
            label = f"latency {share}, ms ({where})"
            lines.append(_ratio_row(label, latencies[0].get(share), latencies[1].get(share), "{:.3f}"))
    return [line for line in lines if line[2] != "–"]


def _ratio_row(label: str, before: Any, after: Any, form: str) -> tuple[str, str, str, str]:
    change = f"{before / after:.2f}x less" if before and after and after <= before else ""
    if before and after and after > before:
        change = f"{after / before:.2f}x more"
    return (label, _number(before, form), _number(after, form), change)


def _number(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
