"""A subject measured inside the engine, between steps; the report's final numbers come from files instead."""

from __future__ import annotations

from torch import fx

from models.report import Cause, Measurement, MetricValue
from models.spec import Metric
from worker.engine.graph.cost import macs, parameters
from worker.engine.measure.metrics import evaluate, evaluate_agreement, forward_of, output_index
from worker.engine.run import Run
from worker.engine.subject import Subject

_OF_FILES = ("file", "file_size_bytes", "file_size_gzip_bytes", "contents", "latency_ms", "peak_memory_bytes")


def assess(subject: Subject, run: Run) -> Measurement:
    """Size of the network as it is now, its metrics and its agreement with the original on the validation split."""
    metrics: dict[str, MetricValue] | None = None
    agreement: MetricValue | None = None
    reasons: dict[str, Cause] = dict.fromkeys(_OF_FILES, "not_measured_at_this_step")
    if run.data is None:
        reasons |= {"metrics": "no_data", "agreement_with_original": "no_data"}
    else:
        network = subject.network().to(run.device)
        output = output_index(subject.outputs, run.spec.data.output if run.spec.data else None)
        forward = forward_of(network, run.device)
        teacher = forward_of(subject.original.to(run.device), run.device)
        metrics = evaluate(forward, run.data.val, run.data.task, output=output) or None
        agreement = evaluate_agreement(teacher, forward, run.data.val, run.data.task, output=output)
        if metrics is None:
            reasons["metrics"] = "no_labels"
    return Measurement(
        metrics=metrics,
        agreement_with_original=agreement,
        parameters=parameters(subject.graph),
        nonzero_parameters=nonzero_parameters(subject.graph),
        macs=total_macs(subject.graph, subject),
        reasons=reasons,
    )


def deciding(measurement: Measurement, metric: Metric) -> MetricValue | None:
    """The value of the metric that decides, which may be the agreement; `None` where it was not measured."""
    return measurement.agreement_with_original if metric == "agreement" else (measurement.metrics or {}).get(metric)


def nonzero_parameters(graph: fx.GraphModule) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in graph.parameters())


def total_macs(graph: fx.GraphModule, subject: Subject) -> int:
    """Multiply-accumulates for one sample."""
    device = next(graph.parameters()).device
    return sum(macs(graph, tuple(value.to(device) for value in subject.example_inputs())).values())
