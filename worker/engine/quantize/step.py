"""The quantize step, static 8-bit integers after training."""

from __future__ import annotations

from typing import Any

from models.spec import QuantizeStep
from worker.engine.quantize.grids import put_on_grid
from worker.engine.quantize.static import prepare, replayed, take_over
from worker.engine.run import Run
from worker.engine.subject import Record, Subject


def run(subject: Subject, step: QuantizeStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: layers made 8-bit, layers kept float and why, SQNR in dB.

    Raises `Failure`: DATASET_BAD without calibration data or when values are not finite on it, UNSUPPORTED_OP when
    the network cannot be folded or nothing in it can be 8-bit.
    """
    return take_over(subject, prepare(subject, step, run), step, run)


def replay(subject: Subject, record: Record) -> None:
    """Quantize `subject` as `record` says, without data."""
    plan = replayed(subject, record)
    put_on_grid(plan.graph, plan.scales, plan.largest)
    subject.graph = plan.graph
    subject.quantization = plan.quantization(record.data["sqnr_db"])
