"""From the finished subject to files that are proved: write, reload, compare, measure, report."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from torch import Tensor, fx

from models.errors import Code, Failure
from models.events import ArtifactEvent
from models.messages import CompressRequest
from models.report import Cause, FilePair, Measurement, MetricValue, Provenance, Report, StepReport, Verification
from models.report_page.page import render_report
from models.spec import ExportFormat
from models.statuses import Phase
from worker.engine.assess import deciding, nonzero_parameters, total_macs
from worker.engine.card import model_card
from worker.engine.export.external import written
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.blocks import has_blocks
from worker.engine.graph.cost import parameters
from worker.engine.graph.stored import stored_network
from worker.engine.measure.census import take_census, what_is_left_over
from worker.engine.measure.contents import layers_of, operators_of_one_runtime
from worker.engine.measure.files import FileFigures, measure_file, score_pair
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.metrics import drop, forward_of, output_index
from worker.engine.measure.runtime import FreshProcess
from worker.engine.measure.verify import verify
from worker.engine.run import Run
from worker.engine.subject import Subject

EXPORTERS: dict[ExportFormat, Callable[[fx.GraphModule, Subject, Path], None]] = {
    "onnx": export_onnx,
    "pt2": export_pt2,
    "safetensors": export_packed,
}
CONTENT_TYPES: dict[str, str] = {
    "onnx": "application/onnx",
    "pt2": "application/zip",
    "safetensors": "application/octet-stream",
    "report": "application/json",
    "page": "text/html; charset=utf-8",
    "card": "text/markdown; charset=utf-8",
    "spec": "application/json",
}
REPORT = "artifacts/report.json"
CARD = "README.md"

_VERIFY_SAMPLES = 64
_NOTICEABLE = 0.95
"""A compressed file slower than this share of the original's latency is not called faster."""
_OWN_LOAD = 0.5
"""What the load average may be above the CPUs before the machine is called busy: the steps before count in it."""


def deliver(subject: Subject, run: Run, request: CompressRequest, before: Measurement, steps: list[StepReport]) -> None:
    """Write the files of `run.spec.export`, each verified before it is announced, then the report.

    `before` is the original as the engine saw it. Raises Failure: VERIFICATION_FAILED, UNSUPPORTED_HERE,
    REQUIREMENT_MISSED when the spec says that a miss fails.
    """
    subject.graph.to("cpu")
    subject.original.to("cpu")
    artifacts, scratch = run.folder / "artifacts", run.folder / "originals"
    for folder in (artifacts, scratch):
        folder.mkdir(exist_ok=True)

    missed = _requirement(run, before, steps)
    if missed and run.spec.require is not None and run.spec.require.on_miss == "fail":
        raise Failure(Code.REQUIREMENT_MISSED, missed, where="/require/max_metric_drop")

    formats = run.spec.export or []
    verifications: list[Verification] = []
    with run.timed("export"):
        run.share(75.0, 12.0)
        for index, form in enumerate(formats):
            run.phase(Phase.EXPORTING)
            EXPORTERS[form](subject.network(), subject, artifacts / f"model.{form}")
            run.progress((index + 0.4) / len(formats))
            EXPORTERS[form](subject.original, subject, scratch / f"original.{form}")
            run.phase(Phase.VERIFYING)
            file = written(artifacts / f"model.{form}")
            verifications.append(_verify(subject, run, file))
            run.progress((index + 1) / len(formats))
            _announce(run, file.name, form)

    run.phase(Phase.MEASURING)
    run.share(87.0, 13.0)
    pairs: list[FilePair] = []
    with run.timed("measure"):
        for index, form in enumerate(formats):

            def on_progress(done: float, index: int = index) -> None:
                run.progress((index + done) / len(formats))

            pairs.append(_measure(subject, run, request.threads, form, on_progress))
            on_progress(1.0)
    _warn_of_a_busy_machine(run, pairs)
    _warn_of_what_did_not_improve(run, pairs)

    report = Report(
        original=pairs[0].original,
        compressed=pairs[0].compressed,
        baseline=before,
        files=pairs,
        steps=steps,
        layers=layer_reports(subject),
        verification=verifications,
        mask_check=max((step.details["mask_check"] for step in steps if "mask_check" in step.details), default=None),
        split_made_here=run.data is not None and run.data.split_made_here,
        requirement_missed=missed,
        cut_short=run.cut_short,
        warnings=run.warnings,
        seconds=run.seconds,
        provenance=_provenance(run, request),
    )
    _write_report(run, report)
    card = model_card(report, run.spec, subject.inputs, subject.outputs)
    (artifacts / CARD).write_text(card, encoding="utf-8")
    _announce(run, CARD, "card")


def deliver_report(run: Run, request: CompressRequest, before: Measurement, steps: list[StepReport]) -> None:
    """The report of a job whose steps change nothing: no file is written, and nothing compressed is measured."""
    (run.folder / REPORT).parent.mkdir(exist_ok=True)
    run.share(100.0, 0.0)
    report = Report(
        original=before,
        compressed=None,
        baseline=before,
        files=[],
        steps=steps,
        layers=[],
        verification=[],
        mask_check=None,
        split_made_here=run.data is not None and run.data.split_made_here,
        cut_short=run.cut_short,
        warnings=run.warnings,
        seconds=run.seconds,
        provenance=_provenance(run, request),
    )
    _write_report(run, report)


def _write_report(run: Run, report: Report) -> None:
    (run.folder / REPORT).write_text(report.model_dump_json(indent=2))
    _announce(run, "report.json", "report")
    page = render_report(report, run.spec.model_dump(mode="json"))
    (run.folder / "artifacts" / "report.html").write_text(page, encoding="utf-8")
    _announce(run, "report.html", "page")
    (run.folder / "artifacts" / "spec.json").write_text(run.spec.model_dump_json(indent=2))
    _announce(run, "spec.json", "spec")


def _announce(run: Run, name: str, kind: ExportFormat | Literal["report", "page", "card", "spec"]) -> None:
    content_type = "application/x-tar" if name.endswith(".tar") else CONTENT_TYPES[kind]
    run.emit(ArtifactEvent(name=name, kind=kind, content_type=content_type, path=f"artifacts/{name}"))


def _samples(subject: Subject, run: Run, count: int) -> tuple[Tensor, ...]:
    """Real samples of the validation split where there is data; the test split is for the metrics alone."""
    if run.data is not None:
        return run.data.val.sample(count, run.spec.seed).inputs
    return subject.example_inputs(count)


def _verify(subject: Subject, run: Run, path: Path) -> Verification:
    inputs = _samples(subject, run, _VERIFY_SAMPLES)
    network = subject.network()
    integers = subject.quantization is not None or has_blocks(network)
    expected = forward_of(network)(inputs)
    proved = verify(
        path,
        inputs,
        expected,
        run.folder,
        integer=integers,
        unpacks_to=stored_network(network, subject.stored) if path.suffix == ".safetensors" else None,
    )
    if path.suffix in (".onnx", ".tar") and (own := operators_of_one_runtime(path)):
        run.warn(
            "onnx_runtime_only",
            f"{path.name} has operators of ONNX Runtime's own ({', '.join(own)}): no other runtime opens it.",
        )
    if path.suffix != ".onnx" or not (integers or subject.stored):
        return proved
    census = take_census(path, run.folder)
    if (leftover := what_is_left_over(census, path.name)) is not None:
        run.warn("integers_unpacked_each_call", leftover)
    return proved.model_copy(update={"census": census})


def _measure(
    subject: Subject, run: Run, threads: int, form: ExportFormat, on_progress: Callable[[float], None]
) -> FilePair:
    original = written(run.folder / "originals" / f"original.{form}")
    compressed = written(run.folder / "artifacts" / f"model.{form}")
    scores: tuple[dict[str, MetricValue], dict[str, MetricValue]] = ({}, {})
    agreement: MetricValue | None = None
    sample, layers = _samples(subject, run, 1), _layers(subject)
    with FreshProcess(run.folder, threads) as process:
        # First, one after the other in a process forked from this one: a large network is in memory once.
        peaks = [process.peak_memory_bytes(path, sample) for path in (original, compressed)]
        on_progress(0.15)
        latencies = process.latency([original, compressed], sample)  # the two take turns
        on_progress(0.3)
        if run.data is not None:
            output = output_index(subject.outputs, run.spec.data.output if run.spec.data else None)
            *both, agreement = score_pair(
                process,
                original,
                compressed,
                run.data.test,
                run.data.task,
                output,
                lambda done: on_progress(0.3 + 0.5 * done),
            )
            scores = (both[0], both[1])
    figures = [
        measure_file(path, latency, peak, layers)
        for path, latency, peak in zip((original, compressed), latencies, peaks, strict=True)
    ]
    whole = None if agreement is None else agreement.model_copy(update={"value": 1.0})
    return FilePair(
        format=form,
        original=_measurement(subject.original, subject, run, figures[0], scores[0], whole),
        compressed=_measurement(subject.graph, subject, run, figures[1], scores[1], agreement),
    )


def _layers(subject: Subject) -> set[str]:
    """Those that own anything in the network that is delivered, or in the original."""
    graphs = (subject.original, subject.network())
    return layers_of(
        {name for graph in graphs for name in (*dict(graph.named_parameters()), *dict(graph.named_buffers()))}
    )


def _measurement(
    graph: fx.GraphModule,
    subject: Subject,
    run: Run,
    figures: FileFigures,
    metrics: dict[str, MetricValue],
    agreement: MetricValue | None,
) -> Measurement:
    reasons: dict[str, Cause] = {}
    if not metrics:
        reasons["metrics"] = "no_data" if run.data is None else "no_labels"
    if agreement is None:
        reasons["agreement_with_original"] = "no_data"
    return Measurement(
        metrics=metrics or None,
        agreement_with_original=agreement,
        parameters=parameters(graph),
        nonzero_parameters=nonzero_parameters(graph),
        macs=total_macs(graph, subject),
        file=figures.name,
        file_size_bytes=figures.size_bytes,
        file_size_gzip_bytes=figures.gzip_bytes,
        contents=figures.contents,
        latency_ms=figures.latency,
        peak_memory_bytes=figures.peak_memory_bytes,
        reasons=reasons,
    )


def _requirement(run: Run, before: Measurement, steps: list[StepReport]) -> str | None:
    """In words, how far the validation metric fell below what `require` allows; None when it did not."""
    if run.spec.require is None or run.data is None:
        return None
    metric, allowed = run.data.metric, run.spec.require.max_metric_drop
    first, last = deciding(before, metric), deciding(steps[-1].after, metric)
    assert first is not None
    assert last is not None
    lost = drop(metric, first.value, last.value)
    if lost <= allowed:
        return None
    return f"{metric} on the validation data got worse by {lost:.4f}, more than the {allowed:g} allowed"


def _warn_of_a_busy_machine(run: Run, pairs: list[FilePair]) -> None:
    latencies = [side.latency_ms for pair in pairs for side in (pair.original, pair.compressed) if side.latency_ms]
    loads = [(found.load_average, found.cpus) for found in latencies if found.load_average is not None and found.cpus]
    load, cpus = max(loads, default=(0.0, 1))
    if load > cpus + _OWN_LOAD:
        run.warn(
            "machine_busy",
            f"While latency was measured {load:.1f} processes wanted this machine's {cpus} usable CPUs: milliseconds "
            "may be too many, and the spread too wide. Both files were hit alike, so their ratio holds better.",
        )


def _warn_of_what_did_not_improve(run: Run, pairs: list[FilePair]) -> None:
    for pair in pairs:
        before, after = pair.original, pair.compressed
        assert before.latency_ms is not None
        assert after.latency_ms is not None
        assert before.file_size_bytes is not None
        assert after.file_size_bytes is not None
        if after.latency_ms.p50 > _NOTICEABLE * before.latency_ms.p50:
            run.warn(
                "not_faster",
                f"{after.file} takes {after.latency_ms.p50:.3f} ms a sample where the original takes "
                f"{before.latency_ms.p50:.3f} ms in {after.latency_ms.runtime} ({after.latency_ms.isa}).",
            )
        if after.file_size_bytes >= before.file_size_bytes:
            run.warn(
                "not_smaller",
                f"{after.file} has {after.file_size_bytes} bytes where the original has {before.file_size_bytes}.",
            )


def _provenance(run: Run, request: CompressRequest) -> Provenance:
    packages = ("modelpress", "torch", "onnx", "onnxruntime", "numpy")
    return Provenance(
        versions={name: version(name) for name in packages} | {"python": platform.python_version()},
        device=str(run.device),
        seed=run.spec.seed,
        model_sha256=request.network.digest(),
        dataset_sha256=request.dataset.digest() if request.dataset else None,
        teachers_sha256={each: file.digest() for each, file in request.teachers.items()},
        spec_sha256=hashlib.sha256(run.spec.model_dump_json().encode()).hexdigest(),
    )
