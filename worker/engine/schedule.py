"""The training between the rounds of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.errors import Code, Failure
from models.spec import FinetuneStep, Schedule, Training
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject


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
