"""What compiled training does not go together with; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable

from models.errors import FieldProblem
from models.inspection import NetworkInspection
from models.spec import Spec
from models.spec_train import trainings


def check_compile(spec: Spec, network: NetworkInspection) -> Iterable[FieldProblem]:
    """Of every training in `spec.steps`; a preset asks for nothing of this."""
    found = trainings(spec.steps or ())
    divided = [pointer for pointer, training in found if training.speed.processes != 1]
    for pointer, training in found:
        if training.speed.compile is not True:
            continue
        where = f"/steps{pointer}/speed/compile"
        if divided:
            message = (
                "An engine is confined either with a compiler or with processes that talk, and "
                f"`/steps{divided[0]}/speed/processes` asks for those: leave one of the two out of this job."
            )
            yield FieldProblem(pointer=where, message=message)
        if training.distill.features:
            message = "`distill.features` looks into layers as they run, which compiled ones do not: leave one out."
            yield FieldProblem(pointer=where, message=message)
        if whole := next((info for info in network.inputs if not info.dtype.startswith(("float", "bfloat"))), None):
            message = (
                f"The input {whole.name!r} is {whole.dtype}, and compiled look-ups end the engine at a number that is "
                "out of range: leave `compile` out."
            )
            yield FieldProblem(pointer=where, message=message)
