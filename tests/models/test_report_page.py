"""The page says what the report says, runs nothing, loads nothing, and stays HTML whatever names a file has."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from models.report import Report
from models.report_page.numbers import digits, metric, size, times
from models.report_page.page import POLICY, render_report
from models.report_page.style import CSS
from tests.models.reports import SPEC, a_report, latency, measured

VOID = {"meta", "br"}
HOSTILE = "</title></pre></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00{}"


class Page(HTMLParser):
    """What a page is made of; every element must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self._number: dict[str, str | None] | None = None
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        self._number = dict(attrs) if tag == "data" else None

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._number = None

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)
        if self._number is not None:
            self.data.append((self._number["data-at"] or "", self._number["value"] or "", data))

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def at(document: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


REPORTS = {
    "five layers": a_report(5),
    "three hundred layers": a_report(300),
    "without data": a_report(accuracy=None),
    "nothing changed": a_report(files=[], layers=[], verification=[], compressed=None, mask_check=None, steps=[]),
    "hostile names": a_report(4, HOSTILE),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_number_shown_is_the_reports(name: str) -> None:
    report = REPORTS[name]
    page = Page(render_report(report, SPEC))
    document = json.loads(report.model_dump_json())
    for pointer, value, shown in page.data:
        exact = at(document, pointer)
        assert float(value) == exact, pointer
        amount, _, unit = shown.replace(",", "").partition(" ")
        scale = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "million": 1e6, "billion": 1e9, "%": 0.01, "min": 60}.get(unit, 1.0)
        assert float(amount) * scale == pytest.approx(exact, rel=6e-3, abs=6e-4), pointer
    told = {pointer for pointer, _, _ in page.data}
    if report.files:
        for side in ("original", "compressed"):
            fields = {"parameters", "nonzero_parameters", "macs", "file_size_bytes", "file_size_gzip_bytes"}
            fields |= {"peak_memory_bytes", "latency_ms/p50", "latency_ms/p95"}
            fields |= {"metrics/accuracy/value", "agreement_with_original/value"} if name != "without data" else set()
            assert {f"/files/0/{side}/{field}" for field in fields} <= told
        for field in ("bits", "input_bits"):
            assert {f"/layers/{place}/{field}" for place in range(len(report.layers))} <= told


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_loads_nothing_and_runs_nothing(name: str) -> None:
    text = render_report(REPORTS[name], SPEC | {"name": HOSTILE, "metadata": {HOSTILE: HOSTILE}})
    page = Page(text)
    ours = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "strong", "small", "span"}
    ours |= {"ul", "li", "dl", "dt", "dd", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "data", "pre"}
    ours |= {"figure", "figcaption", "svg", "line", "circle", "rect", "text", "footer"}
    assert {tag for tag, _ in page.tags} <= ours
    for tag, attributes in page.tags:
        assert not {"href", "src", "style", "action", "srcset", "xlink:href"} & set(attributes), tag
        assert not [key for key in attributes if key.startswith("on")]
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not re.search(r"url\(|@import", CSS)
    assert "\u202e" not in text
    assert "\x00" not in text
    policies = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    assert "unsafe" not in POLICY


def test_hostile_names_are_shown_as_they_are() -> None:
    page = Page(render_report(a_report(1, HOSTILE), SPEC | {"name": HOSTILE}))
    shown = "</title></pre></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    assert page.text.count(shown) >= 4


def test_tables_have_headers_and_drawings_say_what_they_show() -> None:
    page = Page(render_report(a_report(40), SPEC))
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    assert [tag for tag, _ in page.tags].count("caption") == [tag for tag, _ in page.tags].count("table")
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])


def test_the_headline_is_honest_either_way() -> None:
    better = Page(render_report(a_report(), SPEC)).text
    assert "As ONNX the network is 3.60× smaller (20.78 kB → 5.777 kB) and 4.00× faster (3.700 ms → 0.9250 ms" in better
    assert (
        "Accuracy went from 0.9813 to 0.9787 (−0.0026) on 750 test samples, no more than chance would give." in better
    )
    pair = a_report().files[0]
    slow = pair.compressed.model_copy(update={"latency_ms": latency(7.4), "file_size_bytes": 20_500})
    worse = Page(render_report(a_report(files=[pair.model_copy(update={"compressed": slow})]), SPEC)).text
    assert "the network is not smaller (20.78 kB → 20.50 kB) and 2.00× slower" in worse
    assert (
        "No data was given: nothing here says how well it still answers."
        in Page(render_report(a_report(accuracy=None), SPEC)).text
    )
    assert "No step of this job changes the network" in Page(render_report(REPORTS["nothing changed"], SPEC)).text
    unlabelled = measured([], None, agreement_with_original=pair.compressed.agreement_with_original, reasons={})
    page = render_report(a_report(files=[pair.model_copy(update={"compressed": unlabelled})]), SPEC)
    assert "It gives the original's answer for 99.1 % of 750 test samples" in Page(page).text


def test_a_gap_says_why() -> None:
    text = Page(render_report(a_report(accuracy=None), SPEC)).text
    assert "– (no data was given)" in text
    old = a_report()
    quiet = old.files[0].original.model_copy(update={"latency_ms": None, "reasons": {"latency_ms": "no_such_device"}})
    pair = old.files[0].model_copy(update={"original": quiet})
    assert "– (there was no such device)" in Page(render_report(a_report(files=[pair]), SPEC)).text


def test_warnings_and_what_was_missed_are_said_in_words() -> None:
    text = Page(render_report(a_report(requirement_missed="accuracy got worse", cut_short="Time was up."), SPEC)).text
    for said in ("accuracy got worse", "Time was up.", "model.onnx takes as long as before.", "no split of its own"):
        assert said in text


def test_a_report_of_before_these_fields_has_a_page_and_odd_details_do_no_harm() -> None:
    document = json.loads(a_report().model_dump_json())
    del document["baseline"]
    for pair in document["files"]:
        for side in (pair["original"], pair["compressed"]):
            del side["contents"]
            for field in ("quantiles", "load_average", "cpus"):
                del side["latency_ms"][field]
    odd: list[Any] = [{"history": "none"}, {"history": [1, {"val_loss": None}]}, {"rounds": 7}, {"rounds": [None, 1]}]
    odd += [{"metric": {"name": 3}, "rounds": [{"metric": 2, "training": [1]}]}, {"history": [{"val_loss": "x"}] * 3}]
    for details in odd:
        document["steps"][0]["details"] = details
        Page(render_report(Report.model_validate(document), SPEC))
    Page(render_report(Report.model_validate(document), {"data": None}))
    Page(render_report(Report.model_validate(document), {"data": 3, "name": 4}))


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_report(a_report(), SPEC) == render_report(a_report(), SPEC)


def test_numbers_are_written_for_people() -> None:
    assert [size(value) for value in (0, 999, 1000, 44_771_234, 2_147_483_648)] == [
        "0 B",
        "999 B",
        "1.000 kB",
        "44.77 MB",
        "2.147 GB",
    ]
    assert [metric(value) for value in (0.98, 0.00001234, 0.0, 123456.0)] == [
        "0.9800",
        "1.234e-05",
        "0.0000",
        "1.235e+05",
    ]
    assert [digits(value) for value in (0.1234567, 1.5, 12.345, 1234.5)] == ["0.1235", "1.500", "12.35", "1234.5"]
    assert [times(a, 1.0) for a in (1.5, 12.34, 345.6)] == ["1.50×", "12.3×", "346×"]
