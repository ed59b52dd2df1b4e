"""The finetune step: train the network for a few epochs, on labels, on the original's answers, or on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, replace
from typing import Any

from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import FinetuneStep
from models.spec_train import ORIGINAL
from models.statuses import Phase
from worker.engine.compiler import why_not_here
from worker.engine.data.dataset import Batch, Dataset
from worker.engine.losses import LossKind, objective_for
from worker.engine.measure.machine import usable_cpus
from worker.engine.measure.metrics import as_outputs, forward_of, index_outside, output_index
from worker.engine.run import Run
from worker.engine.subject import Record, StepState, Subject
from worker.engine.team import ALONE, Team
from worker.engine.train.batch_norm import synchronised
from worker.engine.train.compiled import Compiled
from worker.engine.train.decide import decide
from worker.engine.train.dropout import Noisy, with_noise
from worker.engine.train.features import Features, features_for
from worker.engine.train.loop import Epoch, Plan, Verdict, train
from worker.engine.train.measure import choose_speed
from worker.engine.train.numerics import Numerics
from worker.engine.train.outcome import described, found_out, judge, say, taught
from worker.engine.train.range_test import RangeTest, range_test
from worker.engine.train.state import device_of

SCALE_SAMPLES = 64
"""Validation samples from which the original's outputs are scaled."""


def run(subject: Subject, step: FinetuneStep, run: Run) -> dict[str, Any]:
    """Train `subject.graph`, in as many processes as `step` asks for, and leave its best weights in it; the report's
    details come back.

    Raises Failure: NOT_TRAINABLE, NAN_LOSS, DATASET_MISMATCH when labels do not fit the output, INVALID_SPEC when the
    loss asked for needs data or labels that are not there, UNSUPPORTED_HERE when this machine lacks the processes.
    """
    run.phase(Phase.FINETUNING)
    if run.gather is None:
        return _train(subject, step, run, ALONE)
    with run.gather(subject, step, run) as team:
        return _train(subject, step, run, team)


def _train(subject: Subject, step: FinetuneStep, run: Run, team: Team) -> dict[str, Any]:
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
    whole = min(step.batch_size, len(data.train))
    forward = Compiled(noisy.network, whole, _why_not_compiled(subject, step, run, team), run.beating)

    def loss_of(batch: Batch) -> Tensor:
        if features is not None:
            features.forget()
        wanted = teacher(batch.inputs) if objective.needs_teacher else None
        try:
            outputs = as_outputs(forward(*batch.inputs))
        except IndexError as error:
            raise index_outside(error) from error
        loss = objective.loss(outputs, wanted, batch.labels, team)
        return loss if features is None else loss + team.share * objective.teachers_share * features.loss()

    def judged() -> Verdict:
        found = team.agree(lambda: astuple(judge(network, original, data, objective, plan, run.device)))
        return Verdict(*found)

    def on_epoch(epoch: Epoch) -> None:
        say(run, data.metric, epoch)

    @contextmanager
    def beside() -> Iterator[None]:
        with synchronised(network, team), nullcontext() if features is None else features.attached():
            yield

    def out_of_time() -> bool:
        if run.spec.limits.on_timeout == "best_so_far":
            return team.agree(run.interrupts.out_of_time)
        return run.interrupts.out_of_time()

    def heard_loss(batch: Batch) -> Tensor:
        run.progress(0.0)
        return loss_of(batch)

    def measure() -> dict[str, Any]:
        most_loaders = max(1, usable_cpus() // team.size)
        with beside():
            return team.agree(
                lambda: choose_speed(step.speed, network, data.train, heard_loss, share, masks, forward, most_loaders)
            )

    def find_rate(numerics: Numerics) -> RangeTest:
        with beside():
            return range_test(network, data.train, loss_of, replace(plan, numerics=numerics), masks, team)

    plan = _plan(step, run.spec.seed)
    share = replace(plan, batch_size=-(-plan.batch_size // team.size))
    masks = {name: mask.to(run.device) for name, mask in subject.masks.items()}
    with forward:
        decided, penalty = decide(subject, step, run, measure, find_rate)
        plan = replace(
            plan,
            learning_rate=decided.learning_rate,
            numerics=decided.numerics,
            loaders=decided.speed.get("loaders", 1),
        )
        forward.keep(decided.speed.get("compiled", False) and _can_compile(forward, run))
        with run.interrupts.listening(), beside():
            log = train(
                network,
                data.train,
                loss_of,
                judged,
                plan,
                penalty=penalty,
                on_progress=lambda fraction, epoch: run.progress(fraction, epoch, step.epochs),
                on_epoch=on_epoch,
                on_state=lambda state: run.keep_state(decided.kept_with(_sound(state))),
                state_due=run.interrupts.state_due,
                out_of_time=out_of_time,
                resume=run.state,
                masks=masks,
                team=team,
            )
    details = described(log, kind, data.metric, len(data.train)) | found_out(step, decided, penalty)
    details |= taught(step, objective, features) | {"dropouts": noisy.dropouts, "drop_paths": noisy.branches}
    details |= {"processes": team.size, "gradients_sent_as": step.speed.gradients if team.size > 1 else None}
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


def _why_not_compiled(subject: Subject, step: FinetuneStep, run: Run, team: Team) -> str | None:
    if step.speed.compile is False:
        return "nobody asks for it"
    if team.size > 1:
        return "several processes train it together"
    if step.distill.features:
        return "`distill.features` looks into its layers as they run"
    if any(not value.is_floating_point() for value in subject.example_inputs()):
        return "it reads whole numbers, and a compiled look-up of one that is out of range ends the whole process"
    return why_not_here(run.device.type)


def _can_compile(forward: Compiled, run: Run) -> bool:
    """A training may go on elsewhere than it began."""
    if forward.why_not is not None:
        run.warn(
            "not_compiled",
            f"The training began with a compiled network and goes on without, as {forward.why_not}: the same up to "
            "rounding.",
        )
    return forward.why_not is None


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
