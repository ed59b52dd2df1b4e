"""The prune step: score, choose, cut, prove; by a schedule again and again, with training in between."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import PruneStep
from models.statuses import Phase
from worker.engine.assess import assess, deciding
from worker.engine.graph.bypass import bypass
from worker.engine.graph.channels import analyse
from worker.engine.graph.cut import cut
from worker.engine.masks import cut_masks
from worker.engine.prune.amounts import signature
from worker.engine.prune.branches import Branches
from worker.engine.prune.choose import Round, Way, choose
from worker.engine.prune.groups import Member, free_groups
from worker.engine.prune.latency import Timing
from worker.engine.prune.proof import cut_and_prove
from worker.engine.prune.rounds import History
from worker.engine.prune.select import Candidate
from worker.engine.prune.units import Units
from worker.engine.run import Run
from worker.engine.schedule import train_between, training_under_way
from worker.engine.score.groups import score_groups
from worker.engine.subject import Record, StepState, Subject

_CUT = 0.2
"""Share of a round that is not training, for the progress bar."""


def run(subject: Subject, step: PruneStep, run: Run) -> dict[str, Any]:
    """Remove channels from `subject.graph` and append the records that `replay` repeats, one a round.

    With a schedule a state is kept after every cut and every training. Once the time is up no other round begins.
    Raises `Failure`: `nothing_to_prune`, `no_layer_matches`, `verification_failed` when a cut network is not the masked
    one, and what training raises.
    """
    history = None if run.state is None else History.from_state(run.state)
    under_way = training_under_way(run.state)
    rounds = 1 if step.schedule is None else step.schedule.rounds
    cut_short = False
    first = 1 if history is None else len(history.rounds)
    for number in range(first, rounds + 1):
        with run.part((number - 1) / rounds, 1 / rounds):
            if history is None or len(history.rounds) < number:
                if history is not None and run.interrupts.out_of_time():
                    cut_short = True
                    break
                history = _cut(subject, step, run, number, history)
                if step.schedule is not None:
                    run.keep_state(history.as_state())
            last = history.rounds[-1]
            if number < rounds and last["units_removed"] and last["training"] is None:
                cut_short = _train(subject, step, run, history, under_way)
                under_way = None
                if cut_short:
                    break
                run.keep_state(history.as_state())
    assert history is not None
    return _finish(step, run, history, cut_short)


def replay(subject: Subject, record: Record) -> None:
    """Repeat a cut on an equal graph; nothing is scored or checked again."""
    channels, removed = analyse(subject.graph, _inputs(subject)), record.tensors["removed"].tolist()
    if record.data["whole_groups"]:
        bypass(channels, removed)
        _keep_masks_of_what_stays(subject)
    else:
        subject.masks = cut_masks(subject.masks, channels, removed)
        cut(channels, removed)


def _keep_masks_of_what_stays(subject: Subject) -> None:
    """Whole groups leave every other parameter as it was."""
    there = dict(subject.graph.named_parameters(remove_duplicate=False))
    subject.masks = {name: mask for name, mask in subject.masks.items() if name in there}


def _inputs(subject: Subject) -> tuple[Tensor, ...]:
    device = next((parameter.device for parameter in subject.graph.parameters()), None)
    return tuple(tensor.to(device) for tensor in subject.example_inputs())


def _cut(subject: Subject, step: PruneStep, run: Run, number: int, history: History | None) -> History:
    """One round: score anew, choose, cut, prove."""
    run.phase(Phase.PRUNING)
    subject.graph.to(run.device)
    inputs = _inputs(subject)
    channels = analyse(subject.graph, inputs)
    members, left_alone = free_groups(channels, step)
    if history is None:
        history = History.begin(channels, members)
        if step.amount is not None and step.amount.quantity == "latency":
            history.at_start = _time(run, subject.graph)
    seed = run.spec.seed + (run.step_index or 0) + number - 1
    choices = [(member.part.scored, member.scoring(step)) for member in members]
    scores, gradients = score_groups(subject, run, channels, choices, step.samples, seed, step.loss)
    candidates = [
        Candidate.of(member.part.group, member.policy, own, _gone(history, member))
        for member, own in zip(members, scores, strict=True)
    ]
    if number == 1 and step.structure != "groups":
        _require_room(step, candidates)
    now = Round(step, number, channels, candidates, history.beginning, history.removed, history.at_start)
    whole = step.structure == "groups"
    way: Way = Branches.of(now, inputs) if whole else Units(now)
    choice = choose(now, way, lambda graph: _time(run, graph), inputs)
    run.progress(0.5 * _CUT)
    difference = 0.0
    if choice.removed:
        if not whole:
            subject.masks = cut_masks(subject.masks, channels, choice.removed)
        removed, difference = cut_and_prove(channels, choice.removed, inputs, way.cut)
        if whole:
            _keep_masks_of_what_stays(subject)
        subject.records.append(Record("prune", {"units": len(removed), "whole_groups": whole}, {"removed": removed}))
    history.add(
        number,
        candidates,
        choice,
        mask_check=difference,
        left_alone=[asdict(group) for group in left_alone],
        gradients=None if gradients is None else {"loss": gradients.loss, "samples": gradients.samples},
        metric=None if step.schedule is None else _metric(subject, run),
        training=None,
    )
    return history


def _gone(history: History, member: Member) -> int:
    """Units of a group that went in earlier rounds."""
    group = member.part.group
    return history.beginning.units.get(signature(group), len(group.units)) - len(group.units)


def _time(run: Run, graph: fx.GraphModule) -> Timing:
    if run.latency is None:
        raise Failure(Code.INTERNAL, "nothing here measures latency")
    return Timing(*run.latency(graph))


def _require_room(step: PruneStep, candidates: list[Candidate]) -> None:
    if not any(len(candidate.choices) > 1 for candidate in candidates):
        largest = max(len(candidate.order) for candidate in candidates)
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"No group of channels can lose any: what stays must be a multiple of {step.round_to} (`round_to`), and "
            f"the largest group that may shrink has {largest} units. Lower `round_to`, `minimum`, or raise "
            "`maximum_fraction`.",
        )


def _metric(subject: Subject, run: Run) -> dict[str, Any] | None:
    """The metric that decides, on the validation data, right after a cut."""
    if run.data is None or (found := deciding(assess(subject, run), run.data.metric)) is None:
        return None
    return {"name": run.data.metric, "after_cut": found.value, "after_training": None}


def _train(subject: Subject, step: PruneStep, run: Run, history: History, under_way: StepState | None) -> bool:
    """Train after a round, and note it in its row; whether the time ran out."""
    assert step.schedule is not None
    with run.part(_CUT, 1 - _CUT):
        details = train_between(subject, step.schedule, run, under_way, history.as_state)
    last = history.rounds[-1]
    last["training"] = {name: details[name] for name in ("epochs", "best_epoch", "loss", "train_samples", "history")}
    if last["metric"] is not None:
        last["metric"]["after_training"] = details["metric_after"]
    return bool(details["cut_short"])


def _finish(step: PruneStep, run: Run, history: History, cut_short: bool) -> dict[str, Any]:
    details = history.details(step, cut_short=cut_short)
    if not history.removed:
        raise Failure(Code.NOTHING_TO_PRUNE, _nothing_went(step))
    if details["why_missed"] is not None and not cut_short:
        run.warn(
            "amount_not_reached",
            f"Asked to remove {details['asked']:.1%} of the {details['quantity']}, removed {details['reached']:.1%}: "
            f"{details['why_missed']}.",
        )
    return details


def _nothing_went(step: PruneStep) -> str:
    if step.amount is not None and step.amount.threshold is not None:
        return (
            f"No unit can go: in every group fewer than one step of {step.round_to} channels (`round_to`) score below "
            f"the threshold {step.amount.threshold:g}. Raise it or lower `round_to`."
        )
    if step.structure == "groups":
        return "What is asked for is less than any group is as a whole. Ask for more."
    return (
        f"What is asked for is less than the smallest step of {step.round_to} channels (`round_to`). "
        "Lower `round_to` or ask for more."
    )
