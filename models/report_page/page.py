"""From a report and the spec it answers to the page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from models.report import Report
from models.report_page import files, layers, steps, tables, words
from models.report_page.markup import Child, Html, document, element, style_element
from models.report_page.numbers import seconds
from models.report_page.style import CSS

POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()}'"
)
"""Content-Security-Policy of the page: its own style sheet, and nothing else."""


def render_report(report: Report, spec: Mapping[str, Any]) -> str:
    """The page for `report` of a job with `spec` (resolved, as JSON). The same arguments give the same bytes."""
    title = str(spec.get("name") or "Compression report")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} – modelpress"),
        style_element(CSS),
    )
    return document(head, element("body", element("main", _body(report, spec, title))))


def _body(report: Report, spec: Mapping[str, Any], title: str) -> list[Child]:
    return [
        element("h1", title),
        element("p", words.headline(report), class_="lead"),
        _notices(report),
        _section("Before and after", _before_and_after(report)),
        _section("Steps", steps.steps(report, spec)),
        _section("Layers", layers.layers(report.layers)) if report.layers else None,
        _section("Where the bytes are", [_of_format(p.format, files.sizes(p)) for p in report.files]),
        _section("Latency", [_of_format(p.format, files.latencies(p, n)) for n, p in enumerate(report.files)]),
        _section("Measured on", [_environment(report)]),
        _section("Verification", _verification(report)),
        _section("Provenance", [_provenance(report)]),
        _section("Spec", [element("pre", json.dumps(spec, indent=2, ensure_ascii=False), tabindex="0")]),
        element(
            "footer",
            f"modelpress {report.provenance.versions.get('modelpress', '')}: report.json has every number in full.",
        ),
    ]


def _section(heading: str, content: Child) -> Child:
    return [element("h2", heading), inner] if (inner := _flat(content)) else None


def _flat(content: Child) -> list[Child]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    return [part for child in content for part in _flat(child)]


def _of_format(form: str, content: list[Child]) -> Child:
    name = words.FORMAT_NAMES[form]
    return [element("h3", name[:1].upper() + name[1:]), content] if content else None


def _notices(report: Report) -> Child:
    said = [text for text in (report.requirement_missed, report.cut_short) if text]
    said += [notice.message for notice in report.warnings if notice.message not in said]
    if report.split_made_here:
        said.append(
            "The data had no split of its own, so one was drawn: the original may have been trained on samples it is "
            "tested on here, and its metric may flatter it."
        )
    return (
        element("ul", [element("li", text) for text in said], class_="notices", aria_label="Warnings") if said else None
    )


def _before_and_after(report: Report) -> Child:
    if not report.files:
        return tables.original_alone(report)
    return [tables.before_and_after(pair, place) for place, pair in enumerate(report.files)]


def _environment(report: Report) -> Html:
    found = report.original.latency_ms
    facts: list[tuple[str, str]] = []
    if found is not None:
        facts += [("Latency on", f"{found.device}, {words.plural(found.threads, 'thread')}, batch {found.batch}")]
        facts += [("Vector extension", found.isa)]
        load = "not told by the system" if found.load_average is None else f"{found.load_average:.2f}"
        cpus = "" if found.cpus is None else f" on {words.plural(found.cpus, 'usable CPU')}"
        facts += [("Load average then", f"{load}{cpus}")]
    facts += [("Steps ran on", report.provenance.device)]
    facts += [(f"Seconds: {name}", seconds(value)) for name, value in report.seconds.items()]
    return _facts(facts)


def _verification(report: Report) -> list[Child]:
    said: list[Child] = []
    if report.verification:
        said.append(tables.verification(report))
    if report.mask_check is not None:
        said.append(
            element(
                "p",
                "Every cut network was held against the uncut one with the removed channels at zero: they differ by "
                f"{report.mask_check:.2g} of the largest output at most.",
            )
        )
    return said


def _provenance(report: Report) -> Html:
    found = report.provenance
    facts = [("SHA-256 of the network", found.model_sha256)]
    facts += [("SHA-256 of the data", found.dataset_sha256 or "no data")]
    facts += [("SHA-256 of the spec", found.spec_sha256), ("Seed", str(found.seed))]
    facts += [(name, version) for name, version in found.versions.items()]
    return _facts(facts)


def _facts(facts: list[tuple[str, str]]) -> Html:
    return element("dl", [[element("dt", name), element("dd", value)] for name, value in facts])
