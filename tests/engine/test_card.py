"""The model card: what it says is the report's, and names from a file stay text."""

from __future__ import annotations

from models.inspection import TensorInfo
from models.report_page.numbers import count, metric, milliseconds, size
from models.spec import Spec
from tests.models.reports import a_report
from worker.engine.card import model_card

INPUTS = (
    TensorInfo(name="x", dtype="float32", shape=[None, 3, 32, 32]),
    TensorInfo(name="ids", dtype="int64", shape=[None]),
)
OUTPUTS = (TensorInfo(name="logits", dtype="float32", shape=[None, 10]),)


def card(name: str = "edge", inputs: tuple[TensorInfo, ...] = INPUTS, **report: object) -> str:
    spec = Spec.model_validate({"model": "net_1", "name": name, "steps": [{"step": "quantize"}]})
    return model_card(a_report(**report), spec, inputs, OUTPUTS)  # type: ignore[arg-type]


def test_it_says_what_it_is_how_it_was_made_and_how_to_load_it() -> None:
    text = card()
    report = a_report()
    compressed = report.files[0].compressed
    assert compressed.metrics is not None
    assert compressed.latency_ms is not None
    assert compressed.file_size_bytes is not None
    for shown in (
        "# edge\n",
        "Input `x`: float32, batch x 3 x 32 x 32",
        "Input `ids`: int64, batch",
        "Output `logits`: float32, batch x 10",
        f"`{report.provenance.model_sha256}`",
        "- finetune: ",
        "- quantize: ",
        f"| {metric(compressed.metrics['accuracy'].value)} |",
        f"| {size(compressed.file_size_bytes)} |",
        f"| {count(compressed.macs)} |",
        f"| {milliseconds(compressed.latency_ms.p50)} |",
        "session.run(None, {'x': …, 'ids': …})",
        "may have been trained on what it was tested on",
        "No data was used.",
    ):
        assert shown in text, shown
    assert "tar xf" not in text


def test_a_network_in_an_archive_says_to_unpack_it() -> None:
    pair = a_report().files[0]
    large = pair.model_copy(update={"compressed": pair.compressed.model_copy(update={"file": "model.onnx.tar"})})
    assert "`tar xf model.onnx.tar` first" in card(files=[large])


def test_names_stay_text() -> None:
    hostile = "# <img src=x> [a](javascript:b)\n\n```\n| ` |"
    text = card(hostile, (TensorInfo(name=hostile, dtype="float32", shape=[None]),))
    assert text.startswith("# \\# \\<img src=x\\> \\[a\\](javascript:b) \\`\\`\\` \\| \\` \\|\n")
    fences = [line for line in text.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```"]


def test_without_data_it_says_that_nothing_is_known_of_its_answers() -> None:
    text = card(accuracy=None)
    assert "No data was given: nothing here says how well it still answers." in text
    assert "– (no data was given)" in text
