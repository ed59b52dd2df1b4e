"""Rounds: how much of an amount is gone after each, and the training between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.errors import Code, Failure
from models.spec import FinetuneStep, Schedule, Training
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject


def gone_after(schedule: Schedule | None, number: int, amount: float) -> float:
    """The part of `amount` (a fraction of what there was) that is gone after round `number`, counted from 1.

    The cubic curve is equation 1 of Zhu and Gupta (2017) with pruning at every round; the exponential one removes the
    same fraction of what is left in each (Frankle and Carbin, 2019). Without a schedule the one round has it all.
    """
    if schedule is None or number >= schedule.rounds:
        return amount
    done = number / schedule.rounds
    if schedule.curve == "linear":
        return amount * done
    if schedule.curve == "cubic":
        return float(amount - amount * (1 - done) ** 3)
    return float(1 - (1 - amount) ** done)


def training_under_way(state: StepState | None) -> StepState | None:
    """What the training between two rounds goes on from, if it was inside it that the state was kept."""
    return state if state is not None and "log" in state.data else None


def train_between(
    subject: Subject,
    schedule: Schedule,
    run: Run,
    under_way: StepState | None,
    as_state: Callable[[StepState], StepState],
) -> dict[str, Any]:
    """Train after a round, from `under_way` where it was interrupted; `as_state` adds to a state what the step itself
    needs to go on. The details of a finetune step come back."""
    if run.train is None:
        raise Failure(Code.INTERNAL, "nothing here trains")
    chosen = {name: getattr(schedule, name) for name in Training.model_fields}
    training = FinetuneStep(step="finetune", epochs=schedule.epochs_between, **chosen)
    state, keep_state = run.state, run.keep_state
    run.state, run.keep_state = under_way, lambda inside: keep_state(as_state(inside))
    details = run.train(subject, training, run)
    run.state, run.keep_state = state, keep_state
    return details
