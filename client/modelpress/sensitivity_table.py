"""What a report says of `sensitivity`: how much each group of channels is worth."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from modelpress.types import Json


def sensitivity_tables(report: Json) -> list[Table]:
    """One for each `sensitivity` step."""
    return [_table(step["details"]) for step in report.get("steps") or [] if step.get("step") == "sensitivity"]


def sensitivity_rows(details: Json) -> list[tuple[str, str, str]]:
    """(layers, channels, what is measured without some of them), the group whose loss changes most first."""
    whole = _deciding(details["unchanged"])[1]
    groups = sorted(details["groups"], key=lambda group: -abs(_deciding(group["points"][-1])[1] - whole))
    return [(", ".join(group["layers"]), str(group["units"]), _points(group["points"])) for group in groups]


def _table(details: Json) -> Table:
    name, value = _deciding(details["unchanged"])
    table = Table(title=f"{name} without some of a group's channels; {value:.4f} with all")
    for heading in ("layers", "channels", "without: measured"):
        table.add_column(heading, overflow="fold")
    for row in sensitivity_rows(details):
        table.add_row(*row)
    return table


def _points(points: list[Json]) -> str:
    return "  ".join(f"{point['removed']}: {_deciding(point)[1]:.4f}" for point in points)


def _deciding(measured: Json) -> tuple[str, float]:
    """The metric where there are labels, else the agreement with the original."""
    metrics: dict[str, Any] = measured.get("metrics") or {"agreement": measured["agreement_with_original"]}
    name, metric = next(iter(metrics.items()))
    return name, float(metric["value"])
