"""The model card that goes with the files: what the network is, how it was made, how to load it, and its limits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.inspection import TensorInfo
from models.report import FilePair, Measurement, Report
from models.report_page.numbers import count, metric, milliseconds, size
from models.report_page.words import missing, plain_headline, plural
from models.report_page.words import words as spaced
from models.spec import Spec

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~-])")


def model_card(report: Report, spec: Spec, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> str:
    """Markdown. `inputs` and `outputs` are those of every file, in call order."""
    parts = [
        f"# {_text(spec.name or 'Compressed network')}",
        _text(plain_headline(report)),
        "## What it is",
        _lines([f"Input {_tensor(tensor)}" for tensor in inputs] + [f"Output {_tensor(tensor)}" for tensor in outputs]),
        f"`batch` may be any size. The original is the file with SHA-256 `{report.provenance.model_sha256}`.",
        "## How it was made",
        _lines(_steps(report)),
        _data(report),
        "## Numbers",
        *[_numbers(pair) for pair in report.files],
        "Every number was measured on these files, reopened by their own runtime in a fresh process; the original was "
        "written to the same format and measured in turn with it. `report.html` shows all, `report.json` has them in "
        "full, `spec.json` is what was asked for.",
        "## How to load it",
        *[_loading(pair, inputs) for pair in report.files],
        "## Limits",
        _lines(_limits(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: str) -> str:
    """As text in Markdown, on one line: names come from a person's file."""
    return _SPECIAL.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in value).split()))


def _code(value: str) -> str:
    """In backticks, whatever it holds."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _lines(entries: Sequence[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _tensor(info: TensorInfo) -> str:
    sizes = [
        "batch" if place == 0 and size is None else "any" if size is None else str(size)
        for place, size in enumerate(info.shape)
    ]
    return f"{_code(info.name)}: {info.dtype}, {' x '.join(sizes) or 'one number'}"


def _steps(report: Report) -> list[str]:
    lines = []
    for step in report.steps:
        scores = [f"{_text(spaced(name))} {metric(found.value)}" for name, found in (step.after.metrics or {}).items()]
        after = f"; after it {', '.join(scores)} on the validation data" if scores else ""
        left = f"{count(step.after.parameters)} parameters and {count(step.after.macs)} MACs left"
        lines.append(f"{step.step}: {left}{after}")
    return lines


def _data(report: Report) -> str:
    found = report.provenance.dataset_sha256
    if found is None:
        return "No data was used."
    return f"The data has SHA-256 `{found}`; the seed is {report.provenance.seed}."


def _numbers(pair: FilePair) -> str:
    before, after = pair.original, pair.compressed
    rows = [("", "original", f"{after.file}"), ("---", "---:", "---:")]
    for name, found in (after.metrics or {}).items():
        was = (before.metrics or {}).get(name)
        label = f"{_text(spaced(name))} ({plural(found.n, f'{found.split} sample')})"
        rows.append((label, "–" if was is None else metric(was.value), metric(found.value)))
    agreement = after.agreement_with_original
    same = "–" if agreement is None else metric(1.0)
    rows.append(("agreement with the original", same, _value(after, "agreement_with_original")))
    for field, label in (
        ("parameters", "parameters"),
        ("macs", "multiply-accumulates a sample"),
        ("file_size_bytes", "file size"),
        ("file_size_gzip_bytes", "file size after gzip"),
        ("latency_ms", "latency, median"),
        ("peak_memory_bytes", "peak memory above the bare runtime"),
    ):
        rows.append((label, _value(before, field), _value(after, field)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    latency = after.latency_ms
    if latency is None:
        return table
    load = "" if latency.load_average is None else f", load average {latency.load_average:.1f}"
    return (
        f"{table}\n\nLatency: {latency.runtime}, {latency.device}, batch {latency.batch}, "
        f"{plural(latency.threads, 'thread')}, {latency.isa}{load}."
    )


def _value(side: Measurement, field: str) -> str:
    value = getattr(side, field)
    if value is None:
        return f"– ({missing(side, field)})"
    if field == "latency_ms":
        return milliseconds(value.p50)
    if field == "agreement_with_original":
        return metric(value.value)
    return size(value) if field.endswith("bytes") else count(value)


def _loading(pair: FilePair, inputs: Sequence[TensorInfo]) -> str:
    names = ", ".join(f"{info.name!r}: …" for info in inputs)
    code = _LOADING[pair.format].format(feeds=f"{{{names}}}", arguments=", ".join("…" for _ in inputs))
    file = pair.compressed.file or ""
    unpack = f"`tar xf {file}` first: the graph and its weights belong into one folder.\n\n"
    return unpack + code if file.endswith(".tar") else code


_LOADING = {
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
outputs = session.run(None, {feeds})  # numpy arrays
```""",
    "pt2": """```python
from torch import export

network = export.load("model.pt2").module()  # can run code of the file: only what you trust
outputs = network({arguments})  # tensors
```""",
    "safetensors": """```python
import modelpress

network = modelpress.load("model.safetensors")  # a torch module that runs, trains and can be uploaded again
```""",
}


def _limits(report: Report) -> list[str]:
    limits = [_text(notice.message) for notice in report.warnings]
    limits += [_text(text) for text in (report.requirement_missed, report.cut_short) if text and text not in limits]
    if report.split_made_here:
        limits.append("The data had no split of its own: the original may have been trained on what it was tested on.")
    if not report.files[0].compressed.metrics:
        limits.append("How often its answers are right was not measured: there were no labels.")
    bits = sorted({layer.bits for layer in report.layers})
    if bits and bits[0] < 16:
        shown = ", ".join(f"{value:.4g}" for value in bits)
        limits.append(f"Weights have {shown} bits; how fast that is depends on the processor's integer extensions.")
    limits.append("It inherits whatever the original and the data get wrong, and the licence of both.")
    return limits
