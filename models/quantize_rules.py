"""What a `quantize` step of each scheme may ask of a network and needs of the data; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from models.errors import FieldProblem
from models.globs import check_globs
from models.inspection import NetworkInspection
from models.spec import AutoStep, DynamicStep, LayerChoice, LayerInt8, LowBitStep, QatStep, QuantizeStep, Step
from models.spec_schemes import Storage

DYNAMIC_KINDS = frozenset({"LSTM", "Linear"})
"""The layers that a runtime has kernels for which range their inputs."""


def data_needed_for(step: Step) -> str | None:
    """Why `step` needs data, where it is one of `quantize` that does."""
    if isinstance(step, LowBitStep):
        return "to train on" if step.epochs else "to hold its `floor` against" if step.floor else None
    if isinstance(step, QatStep):
        return "to calibrate with and to train on"
    return "to calibrate with" if isinstance(step, QuantizeStep) else None


def check_quantize(
    step: QuantizeStep | QatStep | AutoStep | DynamicStep | Storage, network: NetworkInspection, pointer: str
) -> Iterable[FieldProblem]:
    unmatched = list(check_globs([choice.match for choice in step.layers], network.layers, pointer))
    yield from unmatched
    if unmatched or not network.layers:
        return
    left = [layer for layer in network.layers if not _is_skipped(layer.name, step.layers)]
    if not left:
        message = "Every layer is skipped, so nothing would be quantized: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
    elif isinstance(step, DynamicStep) and not any(layer.kind in DYNAMIC_KINDS for layer in left):
        message = (
            "Inputs can be ranged at run time in linear layers and LSTMs only, and none is left here: "
            'use `"method": "ptq"`.'
        )
        yield FieldProblem(pointer=f"{pointer}/method", message=message, allowed=["ptq"])


def _is_skipped(name: str, choices: Sequence[LayerChoice | LayerInt8]) -> bool:
    """By the first choice that matches it."""
    return any(choice.skip for choice in [choice for choice in choices if fnmatchcase(name, choice.match)][:1])
