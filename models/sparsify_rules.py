"""What a `sparsify` step may ask of a network, and what may come after it; a part of `rules.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from models.criteria import GRADIENT_SAMPLES, GradientLoss, needs_gradients
from models.criterion_rules import check_differentiation, check_gradients
from models.errors import FieldProblem
from models.globs import unmatched
from models.inspection import DatasetInspection, LayerInfo, NetworkInspection
from models.spec import Blocks, FactorizeStep, Loss, NOfM, PruneStep, SparsifyStep, Spec, Step
from models.train_rules import check_schedule

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_INPUTS_FIRST = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
SPARSE_KINDS = ("Linear", "Conv1d", "Conv2d", "Conv3d", *_INPUTS_FIRST, *_GATES)
"""Kinds of layers whose weights can be set to zero."""


def check_sparsify(
    step: SparsifyStep, earlier: Sequence[Step], network: NetworkInspection, pointer: str
) -> Iterable[FieldProblem]:
    """`earlier` are the steps before it; its globs are known to match something."""
    layers = [layer for layer in network.layers if layer.kind in SPARSE_KINDS]
    if not layers:
        message = "No layer of this network can be sparse: it has no convolution, linear or recurrent layer."
        yield FieldProblem(pointer=pointer, message=message)
        return
    for index, glob in unmatched([choice.match for choice in step.layers], layers):
        message = f"{glob!r} matches no convolution, linear or recurrent layer, and no other can be sparse."
        yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)
    layers = [layer for layer in layers if not _is_skipped(layer.name, step)]
    if not layers:
        message = "Every layer is skipped, so nothing would be set to zero: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
        return
    if any(isinstance(before, PruneStep | FactorizeStep) for before in earlier):
        return  # Only those steps know the sizes that are left.
    if not any(_fits(step, layer) for layer in layers):
        shapes = ", ".join(f"{layer.name} {layer.shape}" for layer in layers[:3])
        message = f"The pattern fits no layer ({shapes}): {_wanted(step)}. Choose another pattern."
        yield FieldProblem(pointer=f"{pointer}/pattern", message=message)
        return
    weights = sum(math.prod(layer.shape) for layer in layers)
    if step.amount is not None and step.amount * weights < 0.5:
        message = f"Nothing would be set to zero: {step.amount:g} of {weights} weights is less than one. Ask for more."
        yield FieldProblem(pointer=f"{pointer}/amount", message=message)
    for number, before in enumerate(earlier):
        if isinstance(before, SparsifyStep) and _is_covered(step, before):
            message = (
                f"Step {number} has set as many of the same weights to zero already, and they stay zero: ask for more "
                "here, or leave one of the two out."
            )
            yield FieldProblem(pointer=f"{pointer}/{'pattern' if step.amount is None else 'amount'}", message=message)


def check_what_it_reads(
    spec: Spec, step: SparsifyStep, network: NetworkInspection, dataset: DatasetInspection | None, pointer: str
) -> Iterable[FieldProblem]:
    """What its criteria and its schedule need of the data."""
    for where, criterion in step.criteria().items():
        yield from check_gradients(spec, network, criterion, f"{pointer}{where}")
    differentiated = next(filter(needs_gradients, step.criteria().values()), step.criterion)
    yield from check_differentiation(spec, network, dataset, differentiated, step, pointer)
    yield from check_schedule(spec, network, dataset, step.schedule, pointer)


def resolve_sparsify(step: SparsifyStep, loss: Loss, differentiated: GradientLoss | None) -> SparsifyStep:
    """`step` with every default filled in; `loss` and `differentiated` are what the data allows."""
    filled: dict[str, Any] = {}
    if any(needs_gradients(criterion) for criterion in step.criteria().values()):
        filled |= {"loss": step.loss or differentiated, "samples": step.samples or GRADIENT_SAMPLES}
    if step.schedule is not None and step.schedule.loss is None:
        filled["schedule"] = step.schedule.model_copy(update={"loss": loss})
    return step.model_copy(update=filled)


def check_cut_of_a_pattern(earlier: Sequence[Step], pointer: str) -> Iterable[FieldProblem]:
    """Of a `prune` step after `earlier`: a cut takes single columns and rows out, and those that move together are
    then others."""
    for number, before in enumerate(earlier):
        if isinstance(before, SparsifyStep) and before.pattern != "weights":
            message = (
                f"A cut moves what is left together and breaks the pattern of step {number} (`sparsify`): put "
                "`sparsify` after `prune`."
            )
            yield FieldProblem(pointer=pointer, message=message)
            return


def _is_skipped(name: str, step: SparsifyStep) -> bool:
    first = next((choice for choice in step.layers if fnmatchcase(name, choice.match)), None)
    return bool(first and first.skip)


def _fits(step: SparsifyStep, layer: LayerInfo) -> bool:
    """Whether some weight of the layer may have the pattern; the engine knows the groups of a transposed one."""
    first, second = layer.shape[:2]
    outputs, inputs = (second, first) if layer.kind in _INPUTS_FIRST else (first, second)
    widths = {inputs, outputs // _GATES[layer.kind]} if layer.kind in _GATES else {inputs}
    match step.pattern:
        case NOfM(n_of_m=(_, m)):
            return any(width % m == 0 for width in widths)
        case Blocks(block=(rows, columns)):
            return outputs % rows == 0 and any(width % columns == 0 for width in widths)
    return True


def _wanted(step: SparsifyStep) -> str:
    if isinstance(step.pattern, NOfM):
        return f"a layer's inputs must be a multiple of {step.pattern.n_of_m[1]}"
    rows, columns = step.pattern.block if isinstance(step.pattern, Blocks) else (1, 1)
    return f"outputs must be a multiple of {rows} and inputs of {columns}"


def _is_covered(step: SparsifyStep, before: SparsifyStep) -> bool:
    """Whether the same weights, ranked alike, are to be no sparser than before."""
    alike = (step.pattern, step.scope, step.layers) == (before.pattern, before.scope, before.layers)
    if isinstance(step.pattern, NOfM):
        return alike
    return alike and step.amount is not None and before.amount is not None and step.amount <= before.amount
