"""The sparsify step: score, choose, set to zero, and leave masks that every later step keeps to.

In one go, or by a schedule in rounds with training in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from models.errors import Code, Failure
from models.spec import SparsifyStep
from models.statuses import Phase
from worker.engine.assess import assess, deciding
from worker.engine.masks import mask_weights
from worker.engine.run import Run
from worker.engine.schedule import train_between, training_under_way
from worker.engine.score.criteria import CRITERIA
from worker.engine.score.gradients import Gradients, gather
from worker.engine.score.weights import weight_scores
from worker.engine.sparsify.choose import Target, choose, targets_of
from worker.engine.subject import Record, StepState, Subject

NEAR = 0.02
"""How far the fraction reached may be from the one asked for before it is called a miss."""
_MOST = 0.5
"""The least share of all parameters in weights that can be sparse that is not worth a warning."""
_MASKED = 0.2
"""Share of a round that is not training, for the progress bar."""
_KEY = "sparsity"
"""Of what `StepState.data` holds of this step, beside the state of the training that is under way."""

_Rows = list[dict[str, Any]]
"""What the report says of each round so far."""


def run(subject: Subject, step: SparsifyStep, run: Run) -> dict[str, Any]:
    """Set weights of `subject.graph` to zero, add their masks to `subject.masks` and append the record that `replay`
    repeats: that of the last round, whose masks include all before.

    With a schedule a state is kept after every round and every training. Once the time is up no other round begins.
    Raises `Failure`: `nothing_to_prune` when no weight can have the pattern, or none goes that was not zero already,
    and what training raises.
    """
    rows: _Rows = [] if run.state is None else run.state.data[_KEY]
    under_way = training_under_way(run.state)
    rounds = 1 if step.schedule is None else step.schedule.rounds
    cut_short = False
    for number in range(max(1, len(rows)), rounds + 1):
        with run.part((number - 1) / rounds, 1 / rounds):
            if len(rows) < number:
                if rows and run.interrupts.out_of_time():
                    cut_short = True
                    break
                rows.append(_round(subject, step, run, number))
                if step.schedule is not None:
                    run.keep_state(_state(rows))
            if number < rounds and rows[-1]["training"] is None:
                cut_short = _train(subject, step, run, rows, under_way)
                under_way = None
                if cut_short:
                    break
                run.keep_state(_state(rows))
    return _finish(subject, step, run, rows, cut_short)


def replay(subject: Subject, record: Record) -> None:
    """Take the masks over; nothing is scored again."""
    subject.masks |= {name: mask.bool() for name, mask in record.tensors.items()}
    mask_weights(subject.graph, subject.masks)


def _round(subject: Subject, step: SparsifyStep, run: Run, number: int) -> dict[str, Any]:
    """Score anew, choose, and set to zero."""
    run.phase(Phase.PRUNING)
    targets, dense = targets_of(subject, step)
    if not targets:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:5])
        raise Failure(Code.NOTHING_TO_PRUNE, f"No weight can be set to zero ({reasons or 'no layer has any'}).")
    seed = run.spec.seed + (run.step_index or 0) + number - 1
    gradients = _gradients(subject, step, targets, run, seed)
    scores = {
        target.weight.parameter: weight_scores(
            subject.graph, target.weight.parameter, target.criterion(step), seed, gradients
        ).cpu()
        for target in targets
    }
    masks = choose(targets, step, scores, number)
    before = _zeros(target.stays for target in targets)
    subject.masks |= masks
    mask_weights(subject.graph, subject.masks)
    if number > 1:
        _drop_last_record(subject)
    subject.records.append(Record("sparsify", {"round": number}, masks))
    zeros, weights = _zeros(masks.values()), sum(mask.numel() for mask in masks.values())
    return {
        "round": number,
        "zeros_before": before,
        "zeros": zeros,
        "reached": round(zeros / weights, 6),
        "gradients": None if gradients is None else {"loss": gradients.loss, "samples": gradients.samples},
        "metric": None if step.schedule is None else _metric(subject, run),
        "training": None,
    }


def _drop_last_record(subject: Subject) -> None:
    """Of the round before: a checkpoint should not grow with every round."""
    last = max(place for place, record in enumerate(subject.records) if record.step == "sparsify")
    del subject.records[last]


def _gradients(
    subject: Subject, step: SparsifyStep, targets: Sequence[Target], run: Run, seed: int
) -> Gradients | None:
    """What the criteria ask of training samples, where they ask anything."""
    asked = {CRITERIA[target.criterion(step)].statistic for target in targets}
    statistics = {statistic for statistic in asked if statistic is not None}
    if not statistics:
        return None
    return gather(
        subject,
        run,
        statistics,
        step.samples,
        seed,
        loss=step.loss,
        on_progress=lambda fraction: run.progress(_MASKED * fraction),
    )


def _metric(subject: Subject, run: Run) -> dict[str, Any] | None:
    """The metric that decides, on the validation data, right after weights were set to zero."""
    if run.data is None or (found := deciding(assess(subject, run), run.data.metric)) is None:
        return None
    return {"name": run.data.metric, "after_round": found.value, "after_training": None}


def _train(subject: Subject, step: SparsifyStep, run: Run, rows: _Rows, under_way: StepState | None) -> bool:
    """Train after a round, and note it in its row; whether the time ran out."""
    assert step.schedule is not None
    with run.part(_MASKED, 1 - _MASKED):
        details = train_between(subject, step.schedule, run, under_way, lambda inside: _state(rows, inside))
    last = rows[-1]
    last["training"] = {name: details[name] for name in ("epochs", "best_epoch", "loss", "train_samples", "history")}
    if last["metric"] is not None:
        last["metric"]["after_training"] = details["metric_after"]
    return bool(details["cut_short"])


def _state(rows: _Rows, inside: StepState | None = None) -> StepState:
    """Between two rounds, or inside the training that follows one."""
    if inside is None:
        return StepState({"epoch": None, _KEY: rows}, {})
    return StepState({**inside.data, _KEY: rows}, inside.tensors)


def _zeros(masks: Iterable[Tensor]) -> int:
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)


def _finish(subject: Subject, step: SparsifyStep, run: Run, rows: _Rows, cut_short: bool) -> dict[str, Any]:
    targets, dense = targets_of(subject, step)
    masks = {target.weight.parameter: target.stays for target in targets}
    weights, zeros = sum(mask.numel() for mask in masks.values()), _zeros(masks.values())
    if zeros <= rows[0]["zeros_before"]:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"No further weight would become zero: {zeros / weights:.1%} are zero already. Ask for more.",
        )
    parameters = sum(parameter.numel() for parameter in subject.graph.parameters())
    if weights < _MOST * parameters:
        run.warn(
            "mostly_dense",
            f"Only {weights / parameters:.0%} of the parameters are in weights that could get zeros; `left_dense` in "
            "this step's details says why the others could not.",
        )
    missed = _missed(targets, masks, step)
    if missed is not None and not cut_short:
        run.warn("amount_not_reached", missed)
    return {
        "pattern": step.model_dump(mode="json")["pattern"],
        "criterion": step.criterion,
        "asked": step.amount,
        "threshold": step.threshold,
        "reached": round(zeros / weights, 6),
        "parameters": parameters,
        "weights": weights,
        "zeros": zeros,
        "layers": [
            {
                "name": target.weight.layer,
                "parameter": target.weight.parameter,
                "criterion": target.criterion(step),
                "weights": target.stays.numel(),
                "zeros": _zeros([target.stays]),
            }
            for target in targets
        ],
        "left_dense": dense,
        "gradients": rows[-1]["gradients"],
        "cut_short": cut_short,
        **({} if step.schedule is None else {"curve": step.schedule.curve, "rounds": rows}),
    }


def _missed(targets: Sequence[Target], masks: Mapping[str, Tensor], step: SparsifyStep) -> str | None:
    """In words, where the weights that share the step's amount are not near it."""
    shared = [masks[target.weight.parameter] for target in targets if not target.has_own_amount]
    if step.amount is None or not shared:
        return None
    reached = _zeros(shared) / sum(mask.numel() for mask in shared)
    if abs(reached - step.amount) <= NEAR:
        return None
    return (
        f"Asked for {step.amount:.1%} of the weights to be zero, reached {reached:.1%}: every layer keeps its best, "
        "blocks go whole, and what is zero stays so."
    )
