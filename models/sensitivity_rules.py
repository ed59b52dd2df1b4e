"""What may be asked of a `sensitivity` step, and what a job of such steps alone gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from models.criteria import GRADIENT_SAMPLES, needs_gradients
from models.criterion_rules import check_batch_norm, check_samples
from models.errors import FieldProblem
from models.inspection import GroupInfo, NetworkInspection
from models.spec import SensitivityStep, Spec, Step


def changes_nothing(steps: Sequence[Step]) -> bool:
    """Whether the network is left as it was, so that there is nothing to write."""
    return all(isinstance(step, SensitivityStep) for step in steps)


def check_sensitivity(step: SensitivityStep, network: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    """Some group must be left to try; the step's globs are known to match something."""
    yield from check_samples(step.criterion, step.samples, pointer)
    tried = [group for group in network.groups if group.units > 1 and not _is_skipped(group, step)]
    if tried:
        yield from check_batch_norm(network, tried, step.criterion, "global", f"{pointer}/criterion")
        return
    message = "Every group of channels has a layer that is skipped, so nothing would be tried: skip fewer."
    if not step.layers:
        message = "No channels of this network can be removed, so nothing can be tried."
    yield FieldProblem(pointer=pointer, message=message)


def resolve_sensitivity(step: SensitivityStep) -> SensitivityStep:
    """`step` with every default filled in."""
    if step.samples is None and needs_gradients(step.criterion):
        return step.model_copy(update={"samples": GRADIENT_SAMPLES})
    return step


def check_export(spec: Spec, steps: Sequence[Step]) -> Iterable[FieldProblem]:
    """Files are written when, and only when, something was changed."""
    if changes_nothing(steps):
        asked = {"/export": bool(spec.export), "/require": spec.require is not None}
        for pointer in (name for name, given in asked.items() if given and steps):
            message = f"`sensitivity` alone leaves the network as it was: leave `{pointer[1:]}` out, or add a step."
            yield FieldProblem(pointer=pointer, message=message)
    elif spec.export is not None and not spec.export:
        yield FieldProblem(pointer="/export", message="Name at least one format, or leave `export` out for both.")


def _is_skipped(group: GroupInfo, step: SensitivityStep) -> bool:
    return any(fnmatchcase(layer, choice.match) for layer in group.layers for choice in step.layers)
