"""What each step did to the metric, and how training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.report import Measurement, Report, StepReport
from models.report_page import words
from models.report_page.charts import Line, Tick, line_chart
from models.report_page.markup import Child, Html, element
from models.report_page.numbers import large, metric, number, seconds
from models.report_page.tables import row, table

Details = Mapping[str, Any]


def steps(report: Report, spec: Mapping[str, Any]) -> list[Child]:
    """The deciding metric along the steps, drawn and as a table."""
    name = words.deciding_metric(report, spec)
    points = [] if (first := _measured(report.baseline, name)) is None else [(0.0, first)]
    ticks = [Tick(0.0, "original")] if points else []
    rows = []
    for place, step in enumerate(report.steps):
        points += _inside(place, _rows(step.details, "rounds"))
        if (value := _measured(step.after, name)) is not None:
            points.append((place + 1.0, value))
            ticks.append(Tick(place + 1.0, str(place + 1)))
        rows.append(_row(place, step, name))
    line = Line(words.words(name), "after", points)
    title = f"{words.words(name).capitalize()} along the steps, on validation samples, in the engine"
    drawn = line_chart(title, [line], metric, ticks)
    headings = ("step", name.replace("_", " "), "agreement", "parameters", "MACs", "time")
    more = [(_curves(place, step), _sensitivity(place, step)) for place, step in enumerate(report.steps)]
    return [drawn, table("After each step", headings, rows), more]


def _rows(details: Details, name: str) -> list[Details]:
    """What a step says is its own affair: what is no list of objects is passed over, as below."""
    found = details.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _part(details: Details, name: str) -> Details:
    found = details.get(name)
    return found if isinstance(found, dict) else {}


def _measured(measurement: Measurement | None, name: str) -> float | None:
    if measurement is None:
        return None
    value = measurement.agreement_with_original if name == "agreement" else (measurement.metrics or {}).get(name)
    return None if value is None else value.value


def _inside(place: int, rounds: list[Details]) -> list[tuple[float, float]]:
    """The metric in the rounds of a step, between it and the step before: after a cut, then after training."""
    found = []
    for index, one in enumerate(rounds):
        for share, key in ((0.4, "after_cut"), (0.4, "after_round"), (0.8, "after_training")):
            value = _part(one, "metric").get(key)
            if isinstance(value, float):
                found.append((place + (index + share) / len(rounds), value))
    return found


def _row(place: int, step: StepReport, name: str) -> Html:
    at = f"/steps/{place}"
    after = step.after
    value, agreement = _measured(after, name), after.agreement_with_original
    pointer = "agreement_with_original" if name == "agreement" else f"metrics/{name}"
    why = words.missing(after, "metrics")
    return row(
        [f"{place + 1} {step.step}", element("small", "taken from a checkpoint") if step.resumed else None],
        f"– ({why})" if value is None else number(value, metric, f"{at}/after/{pointer}/value"),
        "–" if agreement is None else number(agreement.value, metric, f"{at}/after/agreement_with_original/value"),
        number(after.parameters, large, f"{at}/after/parameters"),
        number(after.macs, large, f"{at}/after/macs"),
        number(step.seconds, seconds, f"{at}/seconds"),
    )


def _curves(place: int, step: StepReport) -> Child:
    """Loss and metric of every epoch, the trainings of a step's rounds one after another."""
    trainings = [step.details, *[_part(one, "training") for one in _rows(step.details, "rounds")]]
    epochs = [epoch for training in trainings for epoch in _rows(training, "history")]
    if len(epochs) < 2:
        return None
    named = step.details.get("metric")

    def line(label: str, style: str, key: str) -> Line:
        values = [(float(index), epoch.get(key)) for index, epoch in enumerate(epochs)]
        return Line(label, style, [(x, float(y)) for x, y in values if isinstance(y, int | float)])

    ticks = [Tick(0.0, "start"), Tick(len(epochs) - 1.0, f"epoch {len(epochs) - 1}")]
    if len(trainings) > 2:
        ticks = [Tick(0.0, "first round"), Tick(len(epochs) - 1.0, "last round")]
    loss = [line("training", "before", "train_loss"), line("validation", "after", "val_loss")]
    shown = words.words(named) if isinstance(named, str) else "metric"
    return [
        element("h3", f"Training in step {place + 1}, {step.step}"),
        element(
            "div",
            line_chart("Loss by epoch", loss, metric, ticks),
            line_chart(f"{shown.capitalize()} by epoch", [line(shown, "after", "val_metric")], metric, ticks),
            class_="grid2",
        ),
    ]


def _sensitivity(place: int, step: StepReport) -> Child:
    """What is measured without some of a group's channels, the group that matters most first."""
    if step.step != "sensitivity":
        return None
    found: list[tuple[float, list[Child], str, str]] = []
    for index, group in enumerate(_rows(step.details, "groups")):
        at = f"/steps/{place}/details/groups/{index}/points"
        points = [_point(point, f"{at}/{k}") for k, point in enumerate(_rows(group, "points"))]
        names = group.get("layers")
        layers = ", ".join(map(str, names)) if isinstance(names, list) else ""
        if points and points[-1][0] is not None:
            found.append((points[-1][0], [cell for _, cell in points], layers, str(group.get("units", ""))))
    if not found:
        return None
    most = max(len(cells) for _, cells, _, _ in found)
    headings = ("layers", "channels", *["without: measured"] * most)
    found.sort(key=lambda group: group[0])
    rows = [row(layers, units, *cells, *[""] * (most - len(cells))) for _, cells, layers, units in found]
    title = f"Step {place + 1}: without some of a group's channels, the lowest first"
    return table(title, headings, rows, tall=len(rows) > 30)


def _point(point: Details, at: str) -> tuple[float | None, Child]:
    """The first metric, or the agreement where there are no labels, after how many channels are left out."""
    metrics = _part(point, "metrics")
    name = next(iter(metrics), None)
    value = _part(metrics, name).get("value") if name else _part(point, "agreement_with_original").get("value")
    if not isinstance(value, int | float):
        return None, "–"
    pointer = f"metrics/{name}" if name else "agreement_with_original"
    return value, element("td", f"{point.get('removed')}: ", number(value, metric, f"{at}/{pointer}/value"))
