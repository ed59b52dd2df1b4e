"""What distillation may ask of the networks: a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from models.errors import FieldProblem
from models.globs import nearest
from models.inspection import NetworkInspection, TensorInfo
from models.label_rules import shown
from models.spec import Spec, Training
from models.spec_train import ORIGINAL, trainings

Teachers = Mapping[str, NetworkInspection]
"""Inspections of networks other than the original, by id."""


def check_distill(spec: Spec, network: NetworkInspection, teachers: Teachers) -> Iterable[FieldProblem]:
    """Of every training in `spec.steps`; a preset asks for nothing of this."""
    for at, training in trainings(spec.steps or ()):
        pointer = f"/steps{at}/distill"
        asked = {"from": training.distill.from_ != ORIGINAL, "features": bool(training.distill.features)}
        if training.loss == "task" and any(asked.values()):
            name = next(name for name, given in asked.items() if given)
            message = "The loss 'task' asks no teacher: use `both` or `distill`, or leave this out."
            yield FieldProblem(pointer=f"{pointer}/{name}", message=message)
            continue
        teacher = network
        if training.distill.from_ != ORIGINAL:
            if training.distill.from_ not in teachers:
                message = f"There is no network {training.distill.from_!r} here: name `original` or one that is given."
                yield FieldProblem(pointer=f"{pointer}/from", message=message)
                continue
            teacher = teachers[training.distill.from_]
            yield from _check_teacher(network, teacher, f"{pointer}/from")
        yield from _check_features(training, network, teacher, f"{pointer}/features")


def _check_teacher(network: NetworkInspection, teacher: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    for what, own, others in (
        ("inputs", network.inputs, teacher.inputs),
        ("outputs", network.outputs, teacher.outputs),
    ):
        if len(own) != len(others) or not all(map(_alike, own, others)):
            message = (
                f"The teacher's {what} are {_shown(others)} and the network's are {_shown(own)}: a teacher takes and "
                "gives the same, in the same order."
            )
            yield FieldProblem(pointer=pointer, message=message)


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    """Names may differ, and sizes that vary fit any."""
    sizes = zip(one.shape, other.shape, strict=False)
    same = len(one.shape) == len(other.shape) and all(a is None or b is None or a == b for a, b in sizes)
    return same and one.dtype == other.dtype


def _shown(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(shown(info, drop_batch=False) for info in infos)


def _check_features(
    training: Training, network: NetworkInspection, teacher: NetworkInspection, pointer: str
) -> Iterable[FieldProblem]:
    own = [layer.name for layer in network.layers if layer.kind != "Parameter" and layer.parameters]
    others = {layer.name for layer in teacher.layers}
    names = [name for name in own if name in others]
    for index, feature in enumerate(training.distill.features):
        if any(fnmatchcase(name, feature.layer) for name in names):
            continue
        whose = "of both networks" if teacher is not network else "with weights"
        message = f"No layer {whose} has a name that matches {feature.layer!r}{nearest(feature.layer, names)}."
        yield FieldProblem(pointer=f"{pointer}/{index}/layer", message=message)
