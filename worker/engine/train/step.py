"""The finetune step: train the network for a few epochs, on labels, on the original's answers, or on both."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.events import MetricEvent
from models.metrics import METRICS
from models.spec import FinetuneStep, Metric
from models.spec_train import ORIGINAL
from models.statuses import Phase
from worker.engine.data.dataset import Batch, Dataset
from worker.engine.losses import LossKind, Objective, objective_for
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.meters import Meter, meter_for
from worker.engine.measure.metrics import as_outputs, forward_of, index_outside, output_index, require_finite
from worker.engine.run import Run
from worker.engine.subject import Record, StepState, Subject
from worker.engine.train.decide import Decided, decide
from worker.engine.train.dropout import Noisy, with_noise
from worker.engine.train.features import Features, features_for
from worker.engine.train.loop import Epoch, Log, Plan, Verdict, train
from worker.engine.train.measure import Chosen, choose
from worker.engine.train.numerics import Numerics
from worker.engine.train.penalties import Regularizer, what_came_of_it
from worker.engine.train.range_test import RangeTest, range_test
from worker.engine.train.state import device_of

SCALE_SAMPLES = 64
"""Validation samples from which the original's outputs are scaled."""


def run(subject: Subject, step: FinetuneStep, run: Run) -> dict[str, Any]:
    """Train `subject.graph` and leave its best weights in it; the report's details come back.

    Raises Failure: NOT_TRAINABLE, NAN_LOSS, DATASET_MISMATCH when labels do not fit the output, INVALID_SPEC when the
    loss asked for needs data or labels that are not there.
    """
    run.phase(Phase.FINETUNING)
    data = _require_data(run)
    kind = _loss_kind(step, data)
    output = output_index(subject.outputs, run.spec.data.output if run.spec.data else None)
    data.check_output(subject.outputs[output])
    device_of(subject.graph)  # No parameters at all: said before anything runs.
    network, original = subject.graph.to(run.device), _teacher(subject, step, run).to(run.device)
    teacher = forward_of(original, run.device)
    some = data.val.sample(SCALE_SAMPLES, run.spec.seed)
    objective = objective_for(
        kind,
        data.task,
        output,
        teacher(some.inputs),
        some.labels,
        weight=step.distill.weight,
        temperature=step.distill.temperature,
    )

    features = _features(network, original, step, some.inputs, run) if objective.needs_teacher else None

    noisy = _noisy(subject, step, run)

    def loss_of(batch: Batch) -> Tensor:
        if features is not None:
            features.forget()
        wanted = teacher(batch.inputs) if objective.needs_teacher else None
        try:
            outputs = as_outputs(noisy.network(*batch.inputs))
        except IndexError as error:
            raise index_outside(error) from error
        loss = objective.loss(outputs, wanted, batch.labels)
        return loss if features is None else loss + objective.teachers_share * features.loss()

    def judge() -> Verdict:
        return _judge(network, original, data, objective, step.batch_size, run.device)

    def on_epoch(epoch: Epoch) -> None:
        _say(run, data.metric, epoch)

    def beside() -> AbstractContextManager[None]:
        return nullcontext() if features is None else features.attached()

    def choose_numerics() -> Chosen:
        with beside():
            return choose(step.speed, network, data.train, loss_of, plan, masks)

    def find_rate(numerics: Numerics) -> RangeTest:
        with beside():
            return range_test(network, data.train, loss_of, replace(plan, numerics=numerics), masks)

    plan = _plan(step, run.spec.seed)
    masks = {name: mask.to(run.device) for name, mask in subject.masks.items()}
    decided, penalty = decide(subject, step, run, choose_numerics, find_rate)
    plan = replace(plan, learning_rate=decided.learning_rate, numerics=decided.numerics)
    with run.interrupts.listening(), beside():
        log = train(
            network,
            data.train,
            loss_of,
            judge,
            plan,
            penalty=penalty,
            on_progress=lambda fraction, epoch: run.progress(fraction, epoch, step.epochs),
            on_epoch=on_epoch,
            on_state=lambda state: run.keep_state(decided.kept_with(_sound(state))),
            state_due=run.interrupts.state_due,
            out_of_time=run.interrupts.out_of_time,
            resume=run.state,
            masks=masks,
        )
    details = _details(log, kind, data.metric, len(data.train)) | _decided(step, decided, penalty)
    details |= _taught(step, objective, features) | {"dropouts": noisy.dropouts, "drop_paths": noisy.branches}
    if log.best == 0:
        run.warn(
            "finetune_did_not_help",
            f"No epoch was better than the start on the validation data ({data.metric}); the start was kept.",
        )
    subject.records.append(Record("finetune", details))
    return details


def _plan(step: FinetuneStep, seed: int) -> Plan:
    """All of the step but a rate that is still to be found."""
    return Plan(
        epochs=step.epochs,
        learning_rate=0.0 if step.learning_rate == "auto" else step.learning_rate,
        weight_decay=step.weight_decay,
        batch_size=step.batch_size,
        seed=seed,
        optimizer=step.optimizer,
        rate_schedule=step.rate_schedule,
        warm_up=step.warm_up,
        clip_norm=step.clip_norm,
        average=step.average,
        patience=step.patience,
        keep=step.keep,
        freeze_batch_norm=step.batch_norm == "freeze",
        augment=step.augment,
    )


def replay(subject: Subject, record: Record) -> None:
    """Nothing to do: training changes values only, and a checkpoint carries those."""


def _require_data(run: Run) -> Dataset:
    if run.data is None:
        raise Failure(
            Code.INVALID_SPEC, "Fine-tuning needs data; name a `dataset` or leave the step out.", where="/data"
        )
    return run.data


def _loss_kind(step: FinetuneStep, data: Dataset) -> LossKind:
    if step.loss is None:
        return "both" if data.has_labels else "distill"
    if step.loss != "distill" and not data.has_labels:
        raise Failure(
            Code.INVALID_SPEC,
            f'`"loss": "{step.loss}"` needs labels and the data has none (or its task is `none`); use "distill".',
            where="/steps/loss",
        )
    return step.loss


def _teacher(subject: Subject, step: FinetuneStep, run: Run) -> fx.GraphModule:
    name = step.distill.from_
    if name == ORIGINAL:
        return subject.original
    if name not in run.teachers:
        raise Failure(Code.INVALID_SPEC, f"The teacher {name!r} was not given.", where="/steps/distill/from")
    return run.teachers[name]


def _features(
    network: fx.GraphModule, teacher: fx.GraphModule, step: FinetuneStep, inputs: tuple[Tensor, ...], run: Run
) -> Features | None:
    if not step.distill.features:
        return None
    placed = tuple(value.to(run.device) for value in inputs)
    where = f"/steps/{run.step_index or 0}/distill/features"
    features, gone = features_for(network, teacher, step.distill.features, placed, run.spec.seed, where)
    if gone:
        run.warn("features_gone", f"Nothing is learnt from layers that were cut out: {', '.join(gone)}.")
    return features


def _noisy(subject: Subject, step: FinetuneStep, run: Run) -> Noisy:
    """The network as it runs while it trains."""
    if not step.dropout and not step.drop_path:
        return Noisy(subject.graph, 0, 0)
    placed = tuple(value.to(run.device) for value in subject.example_inputs())
    noisy = with_noise(subject.graph, placed, step.dropout, step.drop_path)
    for name, asked, found in (
        ("dropout", step.dropout, noisy.dropouts),
        ("drop_path", step.drop_path, noisy.branches),
    ):
        if asked and not found:
            run.warn("nothing_dropped", f"The network has no place for `{name}`: nothing is dropped by it.")
    return noisy


def _sound(state: StepState) -> StepState:
    """`state`, if it is one to go on from. Raises Failure(NAN_LOSS), so that the last good one stays."""
    sums = state.tensors["epoch.loss_sum"]
    broken = [
        name for name, value in state.tensors.items() if name.startswith("network.") and bool(value.isnan().any())
    ]
    if broken or not bool(sums.isfinite().all()):
        what = f"{broken[0].removeprefix('network.')} has" if broken else "The loss has"
        raise Failure(
            Code.NAN_LOSS,
            f"{what} become NaN in epoch {state.data['epoch']}, by step {state.data['batches']}; lower the learning "
            "rate.",
            where=f"epoch {state.data['epoch']}",
        )
    return state


def _taught(step: FinetuneStep, objective: Objective, features: Features | None) -> dict[str, Any]:
    """By whom, and by which layers: `projected` where theirs are wider, or narrower."""
    if not objective.needs_teacher:
        return {"teacher": None, "features": []}
    rows = [] if features is None else features.projections.items()
    layers = [{"layer": name, "projected": any(each is not None for each in found)} for name, found in rows]
    return {"teacher": step.distill.from_, "features": layers}


def _judge(
    network: nn.Module, original: nn.Module, data: Dataset, objective: Objective, batch_size: int, device: torch.device
) -> Verdict:
    """The deciding metric and the loss of the outputs on all validation samples; `original` is the teacher, with whom
    to agree."""
    own, teacher = forward_of(network, device), forward_of(original, device)
    by_agreement = data.metric == "agreement"
    meter: Meter | None = None if by_agreement else meter_for(data.task)
    agreement = AgreementMeter(data.task)
    total = 0.0
    for batch in data.val.batches(batch_size):
        batch = batch.to(device)
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


def _say(run: Run, metric: Metric, epoch: Epoch) -> None:
    def say(name: str, value: float, split: Literal["train", "val"]) -> None:
        event = MetricEvent(name=name, value=value, split=split, step_index=run.step_index, epoch=epoch.epoch)
        run.metric(event)

    if epoch.train_loss is not None:
        say("loss", epoch.train_loss, "train")
    say("loss", epoch.verdict.loss, "val")
    say(metric, _value(metric, epoch.verdict), "val")


def _decided(step: FinetuneStep, decided: Decided, penalty: Regularizer | None) -> dict[str, Any]:
    """For the report: what was found out before training, and what came of the penalty."""
    found: dict[str, Any] = {"learning_rate": decided.learning_rate, "speed": decided.speed}
    if decided.range_test is not None:
        found["range_test"] = decided.range_test
    if step.regularize is not None and decided.before is not None and penalty is not None:
        found["regularize"] = what_came_of_it(step.regularize, decided.before, penalty)
    return found


def _details(log: Log, kind: LossKind, metric: Metric, samples: int) -> dict[str, Any]:
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
