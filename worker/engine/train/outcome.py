"""What a training says of itself: its verdicts, its events, and the details of the report."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from models.events import MetricEvent
from models.metrics import METRICS
from models.spec import FinetuneStep, Metric
from worker.engine.data.dataset import Dataset
from worker.engine.losses import LossKind, Objective
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.meters import Meter, meter_for
from worker.engine.measure.metrics import forward_of, require_finite
from worker.engine.run import Run
from worker.engine.train.decide import Decided
from worker.engine.train.features import Features
from worker.engine.train.feed import on_device
from worker.engine.train.loop import Epoch, Log, Plan, Verdict
from worker.engine.train.penalties import Regularizer, what_came_of_it


def taught(step: FinetuneStep, objective: Objective, features: Features | None) -> dict[str, Any]:
    """By whom, and by which layers: `projected` where theirs are wider, or narrower."""
    if not objective.needs_teacher:
        return {"teacher": None, "features": []}
    rows = [] if features is None else features.projections.items()
    layers = [{"layer": name, "projected": any(each is not None for each in found)} for name, found in rows]
    return {"teacher": step.distill.from_, "features": layers}


def judge(
    network: nn.Module, original: nn.Module, data: Dataset, objective: Objective, plan: Plan, device: torch.device
) -> Verdict:
    """The deciding metric and the loss of the outputs on all validation samples; `original` is the teacher, with whom
    to agree."""
    own, teacher = forward_of(network, device), forward_of(original, device)
    by_agreement = data.metric == "agreement"
    meter: Meter | None = None if by_agreement else meter_for(data.task)
    agreement = AgreementMeter(data.task)
    total = 0.0
    for batch in on_device(data.val.unread(plan.batch_size), device, plan.loaders):
        outputs = own(batch.inputs)
        wanted = teacher(batch.inputs) if by_agreement or objective.needs_teacher else None
        total += float(objective.loss(outputs, wanted, batch.labels)) * len(batch)
        if wanted is not None and by_agreement:
            agreement.add(wanted[objective.output], outputs[objective.output], batch.labels)
        elif meter is not None and batch.labels is not None:
            meter.add(outputs[objective.output], batch.labels)
    value = agreement.value() if meter is None else meter.values()[data.metric]
    require_finite(data.metric, value, data.val)
    require_finite("loss", total, data.val)
    return Verdict(value if METRICS[data.metric].higher_is_better else -value, total / len(data.val))


def _value(metric: Metric, verdict: Verdict) -> float:
    return verdict.score if METRICS[metric].higher_is_better else -verdict.score


def say(run: Run, metric: Metric, epoch: Epoch) -> None:
    def say(name: str, value: float, split: Literal["train", "val"]) -> None:
        event = MetricEvent(name=name, value=value, split=split, step_index=run.step_index, epoch=epoch.epoch)
        run.metric(event)

    if epoch.train_loss is not None:
        say("loss", epoch.train_loss, "train")
    say("loss", epoch.verdict.loss, "val")
    say(metric, _value(metric, epoch.verdict), "val")


def found_out(step: FinetuneStep, decided: Decided, penalty: Regularizer | None) -> dict[str, Any]:
    """For the report: what was found out before training, and what came of the penalty."""
    found: dict[str, Any] = {"learning_rate": decided.learning_rate, "speed": decided.speed}
    if decided.range_test is not None:
        found["range_test"] = decided.range_test
    if step.regularize is not None and decided.before is not None and penalty is not None:
        found["regularize"] = what_came_of_it(step.regularize, decided.before, penalty)
    return found


def described(log: Log, kind: LossKind, metric: Metric, samples: int) -> dict[str, Any]:
    """What the report says about this step; values of `metric` are on the validation data."""
    return {
        "epochs": len(log.epochs) - 1,
        "cut_short": log.cut_short,
        "best_epoch": log.best,
        "keep": log.keep,
        "loss": kind,
        "train_samples": samples,
        "metric": metric,
        "metric_before": _value(metric, log.epochs[0].verdict),
        "metric_after": _value(metric, log.epochs[log.best].verdict),
        "history": [
            {
                "epoch": epoch.epoch,
                "train_loss": epoch.train_loss,
                "val_loss": epoch.verdict.loss,
                "averaged": epoch.averaged,
                "val_metric": _value(metric, epoch.verdict),
            }
            for epoch in log.epochs
        ],
    }
