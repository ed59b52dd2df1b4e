"""As few layers spared as hold a metric above a floor: what the steps that spare some have in common.

Mixed precision by sensitivity: layers are spared in the order of the noise that each alone adds to the outputs (Wu et
al., 2020, "Integer Quantization for Deep Learning Inference", section 5.2, partial quantization).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.errors import Code, Failure
from models.spec_types import Floor
from worker.engine.assess import assess, deciding
from worker.engine.data.dataset import Split
from worker.engine.measure.metrics import drop
from worker.engine.run import Run
from worker.engine.subject import Subject

_SAMPLES = 64
"""Validation samples on which the noise of single layers is measured."""


class Gauge:
    """Measures the metric that decides, on no more validation samples than `floor` asks for."""

    def __init__(self, floor: Floor, run: Run) -> None:
        assert run.data is not None
        self.metric = run.data.metric
        self._allowed = floor.max_metric_drop
        if floor.samples is not None:
            run = replace(run, data=replace(run.data, val=run.data.val.drawn(floor.samples, run.spec.seed)))
        self._run = run

    def alive(self) -> None:
        """Say so: what is measured here takes long."""
        self._run.progress(0.0)

    def score(self, subject: Subject) -> float:
        self.alive()
        found = deciding(assess(subject, self._run), self.metric)
        if found is None:
            raise Failure(Code.INTERNAL, f"{self.metric} was not measured")
        return found.value

    def holds(self, before: float, after: float) -> bool:
        return drop(self.metric, before, after) <= self._allowed

    def for_noise(self) -> Split:
        """The samples on which single layers are compared."""
        assert self._run.data is not None
        return self._run.data.val.drawn(_SAMPLES, self._run.spec.seed)

    def warn_unless_held(self, before: float, reached: float, spared: str) -> None:
        """`spared` says how much was done for it."""
        if not self.holds(before, reached):
            self._run.warn(
                "floor_not_reached",
                f"{self.metric} falls by {drop(self.metric, before, reached):.4f} even with {spared}, more than the "
                f"{self._allowed:g} of `floor`.",
            )


def fewest(most: int, score: Callable[[int], float], holds: Callable[[float], bool]) -> tuple[int, float]:
    """The least of 1 to `most` spared whose score holds, and that score, by bisection; `most` where even that does not.
    That none spared does not hold is known already."""
    count, reached = most, score(most)
    fails = 0 if holds(reached) else most
    while count - fails > 1:
        middle = (fails + count) // 2
        value = score(middle)
        if holds(value):
            count, reached = middle, value
        else:
            fails = middle
    return count, reached
