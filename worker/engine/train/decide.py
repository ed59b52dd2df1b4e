"""What a training finds out once, before its first step: kept with its state, so that who goes on finds the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from models.errors import Code, Failure
from models.spec import Training
from models.spec_regularize import Growing
from worker.engine.graph.channels import Channels, analyse
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject
from worker.engine.train.numerics import Numerics
from worker.engine.train.penalties import Regularizer, described, penalty_for, units_to_draw
from worker.engine.train.range_test import RangeTest

_KEY = "decided"


@dataclass(frozen=True)
class Decided:
    """`speed` says in which numerics and with how many loaders to train, and what was measured; `learning_rate` is the
    peak, and `range_test` how it was found, where it was; `drawn` are the units that growing regularisation draws, by
    the id of their group, and `before` what the penalty was before the first step."""

    speed: dict[str, Any]
    learning_rate: float
    range_test: dict[str, Any] | None = None
    drawn: dict[str, list[int]] | None = None
    before: dict[str, Any] | None = None

    @property
    def numerics(self) -> Numerics:
        return Numerics(**{name: self.speed[name] for name in Numerics.__dataclass_fields__})

    def kept_with(self, state: StepState) -> StepState:
        return StepState({**state.data, _KEY: asdict(self)}, state.tensors)

    @classmethod
    def of(cls, state: StepState) -> Decided:
        return cls(**state.data[_KEY])


def decide(
    subject: Subject,
    training: Training,
    run: Run,
    measure: Callable[[], dict[str, Any]],
    find_rate: Callable[[Numerics], RangeTest],
) -> tuple[Decided, Regularizer | None]:
    """What was decided before the state that `run` goes on from, or is now; and the penalty asked for, if any.

    Raises Failure: NOTHING_TO_PRUNE where the network has nothing for the penalty to draw; as `measure` and
    `find_rate` do.
    """
    decided = Decided.of(run.state) if run.state is not None else None
    channels = None
    if training.regularize is not None:
        channels = analyse(subject.graph, tuple(value.to(run.device) for value in subject.example_inputs()))
    if decided is None:
        decided = Decided(_measured(training, run, measure), 0.0)
        if isinstance(training.regularize, Growing) and channels is not None:
            decided = replace(decided, drawn=units_to_draw(training.regularize, channels, run.spec.seed))
        penalty = _penalty(training, channels, decided)
        if penalty is not None:
            decided = replace(decided, before=described(penalty))
        return _with_a_rate(decided, training, run, find_rate), penalty
    return decided, _penalty(training, channels, decided)


def _measured(training: Training, run: Run, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if run.device.type != "cuda" and (training.speed.precision == "tf32" or training.speed.cudnn_autotune is True):
        run.warn("no_cuda_here", "`tf32` and `cudnn_autotune` are for CUDA devices and were left out here.")
    return measure()


def _with_a_rate(decided: Decided, training: Training, run: Run, find_rate: Callable[[Numerics], RangeTest]) -> Decided:
    if training.learning_rate != "auto":
        return replace(decided, learning_rate=training.learning_rate)
    test = find_rate(decided.numerics)
    if not test.found:
        run.warn(
            "no_rate_found",
            f"No learning rate made the loss fall in the range test, so the usual {test.chosen:g} was taken.",
        )
    return replace(decided, learning_rate=test.chosen, range_test=test.as_details())


def _penalty(training: Training, channels: Channels | None, decided: Decided) -> Regularizer | None:
    if training.regularize is None or channels is None:
        return None
    try:
        return penalty_for(training.regularize, channels, decided.drawn)
    except ValueError as error:
        message = f"`regularize` has nothing to draw to zero: {error}. Leave it out, or use `l1`."
        raise Failure(Code.NOTHING_TO_PRUNE, message) from error
