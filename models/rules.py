"""What a spec may ask of a network and its data, known before anything runs. No torch: the API answers from here.

`check` says everything that is wrong, each with the field and the remedy; `resolve` fills every default in.
The engine calls both again, so that it needs no service. Rules about the data alone are in `data_rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from models.criteria import GradientLoss
from models.criterion_rules import check_gradients, default_loss
from models.data_rules import check_data, resolve_data
from models.distill_rules import Teachers, check_distill
from models.errors import FieldProblem
from models.factorize_rules import check_factorize, check_names_of_parts, with_parts
from models.factors import resolve_factorize
from models.globs import check_globs, nearest
from models.inspection import DatasetInspection, NetworkInspection
from models.int8_rules import resolve_int8
from models.label_rules import is_labelled
from models.lowbit_rules import check_low_bit
from models.presets import PRESETS
from models.prune_policy import resolve_prune
from models.prune_rules import check_prune
from models.quantize_rules import check_quantize, data_needed_for
from models.sensitivity_rules import changes_nothing, check_export, check_sensitivity, resolve_sensitivity
from models.sparsify_rules import check_cut_of_a_pattern, check_sparsify, check_what_it_reads, resolve_sparsify
from models.spec import (
    AutoStep,
    DynamicStep,
    FactorizeStep,
    FinetuneStep,
    FloatStep,
    Fp8Step,
    Loss,
    LowBitStep,
    PruneStep,
    QatStep,
    QuantizeStep,
    SensitivityStep,
    SparsifyStep,
    Spec,
    Step,
    StoredStep,
)
from models.speed_rules import check_compile
from models.train_rules import check_training


@dataclass(frozen=True)
class StepRule:
    """`after`: the steps that may have come before, anywhere in the list. `data_for`: why it needs data, if it does."""

    after: frozenset[str]
    data_for: str | None


_FLOATS = frozenset({"prune", "sparsify", "factorize", "finetune", "sensitivity"})
FOLLOWS: dict[str, StepRule] = {
    "prune": StepRule(after=_FLOATS, data_for=None),
    "sparsify": StepRule(after=_FLOATS, data_for=None),
    "factorize": StepRule(after=_FLOATS - {"sparsify"}, data_for=None),
    "finetune": StepRule(after=_FLOATS, data_for="to train on"),
    "quantize": StepRule(after=_FLOATS, data_for=None),  # What a scheme needs is in `quantize_rules`.
    "sensitivity": StepRule(after=_FLOATS, data_for="to measure on"),
}
"""One row a step. Integers can be neither cut nor trained, so nothing follows `quantize`; zeros that stay have no place
in a product of thinner layers."""

_WHY_NOT = {
    "quantize": "quantize makes integers, which are not cut, trained or quantized again. Put `quantize` last, once.",
    "sparsify": "what takes a layer's place has none of the zeros that are to stay. Put `sparsify` after `factorize`.",
}
"""For a step that another cannot come after."""


def check(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, teachers: Teachers = MappingProxyType({})
) -> list[FieldProblem]:
    """Every problem of `spec`, in the order of its fields; none: it can be queued.

    `dataset` is the inspection of `spec.data.dataset`, or `None` when there is no data; `teachers` are
    those of the networks that `distill.from` names."""
    problems: list[FieldProblem] = []
    if spec.preset is not None and spec.preset not in PRESETS:
        message = f"There is no preset {spec.preset!r}{nearest(spec.preset, PRESETS)}."
        problems.append(FieldProblem(pointer="/preset", message=message, allowed=list(PRESETS)))
    if spec.data is not None and dataset is not None:
        problems += check_data(spec.data, network, dataset)
    elif spec.data is not None or dataset is not None:
        message = "`data` names a data set and a data set is given, or neither: one of the two is missing here."
        problems.append(FieldProblem(pointer="/data", message=message))
    for notice in network.warnings:
        if notice.code == "nonfinite_weights":
            message = f"{notice.message} Nothing can be compared with such a network: send one with finite weights."
            problems.append(FieldProblem(pointer="/model", message=message))
    inspected, steps = network, steps_of(spec)
    for index, step in enumerate(steps):
        pointer = f"/steps/{index}" if spec.steps is not None else "/preset"
        problems += _check_order(steps, index, pointer)
        problems += _check_needs(spec, step, pointer)
        problems += check_names_of_parts(step, steps[:index], inspected, pointer)
        network = with_parts(inspected, steps[:index])
        match step:
            case PruneStep():
                first = not any(isinstance(earlier, PruneStep | FactorizeStep) for earlier in steps[:index])
                problems += check_prune(spec, step, network, dataset, pointer, first=first)
                problems += check_cut_of_a_pattern(steps[:index], pointer)
            case SparsifyStep():
                unmatched = list(check_globs([choice.match for choice in step.layers], network.layers, pointer))
                problems += unmatched or check_sparsify(step, steps[:index], network, pointer)
                problems += check_what_it_reads(spec, step, network, dataset, pointer)
            case FactorizeStep():
                unmatched = list(check_globs([choice.match for choice in step.layers], network.layers, pointer))
                problems += unmatched or check_factorize(spec, step, steps[:index], network, pointer)
            case FinetuneStep():
                problems += check_training(spec, network, dataset, step, pointer)
            case QuantizeStep() | QatStep() | AutoStep() | DynamicStep() | StoredStep() | FloatStep() | Fp8Step():
                problems += check_quantize(step, network, pointer)
                if isinstance(step, QatStep):
                    problems += check_training(spec, network, dataset, step, pointer)
            case LowBitStep():
                problems += check_low_bit(spec, step, steps[:index], network, dataset, pointer)
            case SensitivityStep():
                unmatched = list(check_globs([choice.match for choice in step.layers], network.layers, pointer))
                problems += unmatched or check_sensitivity(step, network, pointer)
                problems += check_gradients(spec, network, step.criterion, f"{pointer}/criterion")
    problems += check_distill(spec, network, teachers)
    problems += check_compile(spec, inspected)
    problems += check_export(spec, steps)
    if spec.require is not None and spec.data is None:
        message = "`require` is decided on validation data, and there is none: give `data`, or leave `require` out."
        problems.append(FieldProblem(pointer="/require", message=message))
    return problems


def resolve(spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None) -> Spec:
    """`spec` with its steps written out and every default filled in; only for a spec that `check` has passed.

    What stays null does nothing: a transform without `resize`, `crop`, `mean` or `std` leaves that part out.
    Resolving twice changes nothing more."""
    data = None
    learnt: Loss = "distill"
    if spec.data is not None and dataset is not None:
        data = resolve_data(spec.data, network, dataset)
        learnt = "both" if is_labelled(data, dataset) else "distill"
    differentiated = default_loss(spec.data, network, dataset) if spec.data is not None else None
    steps = [_filled_in(step, learnt, differentiated) for step in steps_of(spec)]
    export = spec.export
    if export is None:
        export = [] if changes_nothing(steps) else ["onnx", "pt2"]
        if any(isinstance(step, SparsifyStep | LowBitStep) for step in steps):
            export.append("safetensors")  # No other file gets smaller by zeros, nor as small by codes.
    return spec.model_copy(update={"preset": None, "steps": steps, "data": data, "export": export})


def _filled_in(step: Step, learnt: Loss, differentiated: GradientLoss | None) -> Step:
    if isinstance(step, FinetuneStep) and step.loss is None:
        return step.model_copy(update={"loss": learnt})
    if isinstance(step, LowBitStep) and step.epochs and step.loss is None:
        return step.model_copy(update={"loss": learnt})
    if isinstance(step, QuantizeStep | QatStep):
        return resolve_int8(step, learnt)
    if isinstance(step, SparsifyStep):
        return resolve_sparsify(step, learnt, differentiated)
    if isinstance(step, SensitivityStep):
        return resolve_sensitivity(step)
    if isinstance(step, FactorizeStep):
        return resolve_factorize(step)
    return resolve_prune(step, learnt, differentiated) if isinstance(step, PruneStep) else step


def steps_of(spec: Spec) -> list[Step]:
    """The steps asked for, or the preset's; none for a preset that does not exist."""
    if spec.steps is not None:
        return spec.steps
    preset = PRESETS.get(spec.preset or "")
    return preset.steps if preset is not None else []


def _check_order(steps: Sequence[Step], index: int, pointer: str) -> Iterable[FieldProblem]:
    step = steps[index].step
    for before, earlier in enumerate(steps[:index]):
        if earlier.step not in FOLLOWS[step].after:
            message = f"`{step}` cannot come after `{earlier.step}` (step {before}): {_WHY_NOT[earlier.step]}"
            yield FieldProblem(pointer=pointer, message=message)
            return


def _check_needs(spec: Spec, step: Step, pointer: str) -> Iterable[FieldProblem]:
    purpose = data_needed_for(step) or FOLLOWS[step.step].data_for
    if purpose is not None and spec.data is None:
        whose = "The" if pointer != "/preset" else f"The preset {spec.preset!r} has a"
        needs = "needs" if pointer != "/preset" else "that needs"
        message = (
            f"{whose} `{step.step}` step {needs} data {purpose}; labels are not needed. "
            'Upload some (`POST /datasets`) and give `"data": {"dataset": "dat_…"}`.'
        )
        yield FieldProblem(pointer=pointer, message=message)
