"""Each layer before and after: as columns for the whole, as rows to look one up."""

from __future__ import annotations

from collections.abc import Sequence

from models.report import LayerReport
from models.report_page import charts
from models.report_page.markup import Child, Html, element
from models.report_page.numbers import count, decibels, number, percent
from models.report_page.tables import row, table

_MANY = 30


def layers(rows: Sequence[LayerReport]) -> list[Child]:
    """Columns of what differs between layers, then the table."""
    drawn: list[Child] = []
    kept = [(f"{layer.name}: {_channels(layer)} channels", _kept(layer)) for layer in rows]
    if any(value is not None and value < 1 for _, value in kept):
        drawn.append(_chart("Share of channels that stay, layer by layer", kept, 1.0, rows))
    if any(layer.sparsity > 0.01 for layer in rows):
        zeros: list[tuple[str, float | None]] = [(f"{x.name}: {percent(x.sparsity)} zeros", x.sparsity) for x in rows]
        drawn.append(_chart("Share of weights that are zero, layer by layer", zeros, 1.0, rows))
    if any(layer.bits != 32 for layer in rows):
        bits: list[tuple[str, float | None]] = [(f"{layer.name}: {layer.bits:.4g} bits", layer.bits) for layer in rows]
        drawn.append(_chart("Bits of a weight, layer by layer", bits, max(layer.bits for layer in rows), rows))
    if any(layer.sqnr_db is not None for layer in rows):
        noise = [
            (f"{layer.name}: {'not quantized' if layer.sqnr_db is None else decibels(layer.sqnr_db)}", layer.sqnr_db)
            for layer in rows
        ]
        highest = max(layer.sqnr_db for layer in rows if layer.sqnr_db is not None)
        drawn.append(_chart("Signal to quantization noise (dB; more is better), layer by layer", noise, highest, rows))
    headings = ("layer", "kind", "channels", "", "bits", "input bits", "zeros", "SQNR")
    body = [_row(place, layer) for place, layer in enumerate(rows)]
    caption = f"{len(rows)} layers"
    return [
        element("div", drawn, class_="grid2") if len(rows) > 1 else None,
        table(caption, headings, body, left=frozenset({0, 1}), tall=len(rows) > _MANY),
    ]


def _chart(title: str, values: Sequence[tuple[str, float | None]], highest: float, rows: Sequence[LayerReport]) -> Html:
    there = [value for _, value in values if value is not None]
    spoken = f"{title}: from {min(there):.3g} to {max(there):.3g} over {len(rows)} layers; the table has each"
    return charts.column_chart(title, values, highest, spoken)


def _kept(layer: LayerReport) -> float | None:
    if not layer.channels_before or layer.channels_after is None:
        return None
    return layer.channels_after / layer.channels_before


def _channels(layer: LayerReport) -> str:
    before, after = ("–" if value is None else str(value) for value in (layer.channels_before, layer.channels_after))
    return before if before == after else f"{before} → {after}"


def _row(place: int, layer: LayerReport) -> Html:
    at = f"/layers/{place}"
    kept = _kept(layer)
    before, after = (
        "–" if value is None else number(value, count, f"{at}/channels_{side}")
        for side, value in (("before", layer.channels_before), ("after", layer.channels_after))
    )
    channels = [before] if layer.channels_before == layer.channels_after else [before, " → ", after]
    drawing = None if kept is None else charts.bars([("back", 1.0), ("after", kept)])
    return row(
        layer.name,
        element("td", layer.kind, class_="left"),
        channels,
        element("td", drawing, class_="draw"),
        number(layer.bits, "{:.4g}".format, f"{at}/bits"),
        number(layer.input_bits, str, f"{at}/input_bits"),
        number(layer.sparsity, percent, f"{at}/sparsity"),
        "–" if layer.sqnr_db is None else number(layer.sqnr_db, decibels, f"{at}/sqnr_db"),
    )
