"""What a `quantize` step of few bits may ask of a network and its data, and what it leaves; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.errors import FieldProblem
from models.globs import check_globs, unmatched
from models.inspection import DatasetInspection, NetworkInspection
from models.lowbit_policy import LOW_BIT_KINDS, Coding, coding_of, ends, goes_with_blocks, is_worth_it
from models.spec import SparsifyStep, Spec, Step
from models.spec_lowbit import Int4Step, LowBitStep
from models.train_rules import check_training


def check_low_bit(
    spec: Spec,
    step: LowBitStep,
    earlier: Sequence[Step],
    network: NetworkInspection,
    dataset: DatasetInspection | None,
    pointer: str,
) -> Iterable[FieldProblem]:
    """`earlier` are the steps before it."""
    globs = [choice.match for choice in step.layers]
    problems = list(check_globs(globs, network.layers, pointer))
    yield from problems
    if step.epochs and spec.data is not None:
        yield from check_training(spec, network, dataset, step, pointer)
    if problems or not network.layers:
        return
    able = [layer for layer in network.layers if layer.kind in LOW_BIT_KINDS]
    if not able:
        message = "No weight of this network can be stored in few bits: no convolution, linear layer or embedding."
        yield FieldProblem(pointer=pointer, message=message)
        return
    for index, glob in unmatched(globs, able):
        message = f"{glob!r} matches no convolution, linear layer or embedding, and no other is stored so."
        yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)
    codings = codings_of(step, network)
    if not codings:
        message = "Every layer is skipped or kept, so nothing would be quantized: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
    elif isinstance(step, Int4Step) and step.activations == "int8":
        linear = [codings[layer.name] for layer in able if layer.kind == "Linear" and layer.name in codings]
        if not any(map(goes_with_blocks, linear)):
            message = "No linear layer of this network would have 8-bit inputs: leave `activations` out."
            yield FieldProblem(pointer=f"{pointer}/activations", message=message)
    if any(isinstance(before, SparsifyStep) for before in earlier):
        yield from _check_zeros(codings, pointer)


def codings_of(step: LowBitStep, network: NetworkInspection) -> dict[str, Coding]:
    """By the name of the layer, for those whose weight is stored in few bits."""
    outer = ends([(layer.name, layer.kind) for layer in network.layers])
    found = {}
    for layer in network.layers:
        coding = coding_of(step, layer.name, layer.kind, at_an_end=layer.name in outer)
        if isinstance(coding, Coding) and is_worth_it(coding, layer.shape):
            found[layer.name] = coding
    return found


def _check_zeros(codings: dict[str, Coding], pointer: str) -> Iterable[FieldProblem]:
    """What was set to zero stays zero, so there must be one."""
    for name, coding in codings.items():
        if coding.scheme == "binary" or coding.dimension > 1:
            what = "Binary weights have no zero" if coding.scheme == "binary" else "Entries of several weights mix them"
            message = (
                f"{what}, and `sparsify` has set weights to zero that stay so ({name}): use `int4`, `ternary` or a "
                "`codebook` of dimension 1, or leave `sparsify` out."
            )
            yield FieldProblem(pointer=pointer, message=message)
            return
