"""The quantize step with `"method": "qat"`: first as after training, then trained while it computes in 8 bits.

The one training loop trains the fake-quantized graph, with the original as teacher, and keeps its best epoch. Epoch 0
is the network as it was quantized without training, so what is left is the better of the two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from models.errors import Code, Failure
from models.metrics import METRICS
from models.spec import FinetuneStep, QatStep, Training
from worker.engine.quantize.fake import with_fakes, without_fakes
from worker.engine.quantize.placement import place
from worker.engine.quantize.static import Plan, prepare, replayed, take_over
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

TRAINING = "quantize training"
"""The record of a subject whose graph is fake-quantized: training is under way."""
_PREPARED = 0.1
"""Share of the step that is not training, for the progress bar."""


def run(subject: Subject, step: QatStep, run: Run) -> dict[str, Any]:
    """Quantize and train `subject` in place; details for the report: those of both, and which of the two was kept.

    Raises `Failure` as quantizing and training do.
    """
    if run.train is None:
        raise Failure(Code.INTERNAL, "nothing here trains")
    if run.state is None:
        with run.part(0.0, _PREPARED):
            plan = prepare(subject, step, run)
        follows = {name: step.weight_ranges_of(name) == "minmax" for name in plan.placement.layers}
        learns = step.learn_scales
        record = plan.record(TRAINING, step.equalize, details=plan.details, follows=follows, learn_scales=learns)
        subject.graph = _fake(plan, record)
        subject.records.append(record)
    else:
        record = next(record for record in reversed(subject.records) if record.step == TRAINING)
    with run.part(_PREPARED, 1 - _PREPARED):
        trained = run.train(subject, _as_finetuning(step), run)
    del subject.records[subject.records.index(record) :]
    details = take_over(subject, _plan(subject, record), step, run)
    return details | _compared(trained) | {"cut_short": trained["cut_short"], "training": trained}


def replay_training(subject: Subject, record: Record) -> None:
    """The fake-quantized graph that was trained, as it began; a checkpoint carries its weights."""
    subject.graph = _fake(replayed(subject, record), record)


def _fake(plan: Plan, record: Record) -> fx.GraphModule:
    return with_fakes(
        plan.graph,
        plan.placement,
        plan.quantization({}).activations,
        plan.scales,
        plan.largest,
        follows=record.data["follows"],
        learn_scales=record.data["learn_scales"],
    )


def _plan(subject: Subject, record: Record) -> Plan:
    """What training made of the plan of `record`. Biases were trained, and come with the graph."""
    graph, ranges, scales = without_fakes(subject.graph)
    skipped = record.data["skip"]
    ordered = {name: ranges[name] for name in record.data["values"] if name in ranges}
    placement = replace(place(graph, skipped), kept_float=record.data["kept_float"])
    return Plan(graph, skipped, placement, ordered, scales, record.data["largest"], {}, record.data["details"])


def _as_finetuning(step: QatStep) -> FinetuneStep:
    chosen = {name: getattr(step, name) for name in Training.model_fields}
    return FinetuneStep(step="finetune", epochs=step.epochs, **chosen)


def _compared(trained: dict[str, Any]) -> dict[str, Any]:
    """The metric that decides, on the validation data, without training and of the best epoch of it."""
    best = max if METRICS[trained["metric"]].higher_is_better else min
    after = [row["val_metric"] for row in trained["history"] if row["epoch"] > 0]
    return {
        "method": "qat",
        "metric": trained["metric"],
        "ptq": trained["metric_before"],
        "qat": best(after) if after else None,
        "kept": "qat" if trained["best_epoch"] > 0 else "ptq",
    }
