"""What a spec may ask of a network and its data, known before anything runs. No torch: the API answers from here.

`check` says everything that is wrong, each with the field and the remedy; `resolve` fills every default in.
The engine calls both again, so that it needs no service. Rules about the data alone are in `data_rules.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.criteria import CRITERIA, GradientLoss, needs_gradients
from models.criterion_rules import check_batch_norm, check_gradients, check_loss, default_loss
from models.data_rules import check_data, effective_task, output_that_counts, resolve_data
from models.errors import FieldProblem
from models.inspection import DatasetInspection, LayerInfo, NetworkInspection
from models.presets import PRESETS
from models.sparsify_rules import check_cut_of_a_pattern, check_sparsify
from models.spec import FinetuneStep, LayerChoice, LayerSparsity, PruneStep, QuantizeStep, SparsifyStep, Spec, Step


@dataclass(frozen=True)
class StepRule:
    """`after`: the steps that may have come before, anywhere in the list. `data_for`: why it needs data, if it does."""

    after: frozenset[str]
    data_for: str | None


_FLOATS = frozenset({"prune", "sparsify", "finetune"})
FOLLOWS: dict[str, StepRule] = {
    "prune": StepRule(after=_FLOATS, data_for=None),
    "sparsify": StepRule(after=_FLOATS, data_for=None),
    "finetune": StepRule(after=_FLOATS, data_for="to train on"),
    "quantize": StepRule(after=_FLOATS, data_for="to calibrate with"),
}
"""One row a step. Integers can be neither cut nor trained, so nothing follows `quantize`."""


def check(spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None) -> list[FieldProblem]:
    """Every problem of `spec`, in the order of its fields; none: it can be queued.

    `dataset` is the inspection of `spec.data.dataset`, or `None` when there is no data."""
    problems: list[FieldProblem] = []
    if spec.preset is not None and spec.preset not in PRESETS:
        message = f"There is no preset {spec.preset!r}{_nearest(spec.preset, PRESETS)}."
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
    steps = steps_of(spec)
    for index, step in enumerate(steps):
        pointer = f"/steps/{index}" if spec.steps is not None else "/preset"
        problems += _check_order(steps, index, pointer)
        problems += _check_needs(spec, step, pointer)
        match step:
            case PruneStep():
                first = not any(isinstance(earlier, PruneStep) for earlier in steps[:index])
                field = f"{pointer}/criterion" if spec.steps is not None else pointer
                problems += check_gradients(spec, network, step.criterion, field)
                problems += check_loss(spec, network, dataset, step.criterion, step.loss, f"{pointer}/loss")
                problems += _check_prune(step, network, pointer, first=first)
                problems += check_cut_of_a_pattern(steps[:index], pointer)
            case SparsifyStep():
                unmatched = list(_check_globs(step.layers, network.layers, pointer))
                problems += unmatched or check_sparsify(step, steps[:index], network, pointer)
                for where, criterion in step.criteria().items():
                    problems += check_gradients(spec, network, criterion, f"{pointer}{where}")
            case FinetuneStep():
                problems += _check_finetune(spec, network, dataset, step, pointer)
            case QuantizeStep():
                problems += _check_quantize(step, network, pointer)
    if spec.require is not None and spec.data is None:
        message = "`require` is decided on validation data, and there is none: give `data`, or leave `require` out."
        problems.append(FieldProblem(pointer="/require", message=message))
    return problems


def resolve(spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None) -> Spec:
    """`spec` with its steps written out and every default filled in; only for a spec that `check` has passed.

    What stays null does nothing: a transform without `resize`, `crop`, `mean` or `std` leaves that part out.
    Resolving twice changes nothing more."""
    data = None
    task = "none"
    if spec.data is not None and dataset is not None:
        data = resolve_data(spec.data, network, dataset)
        task = data.task or "none"
    learnt = "distill" if task == "none" else "both"
    differentiated = default_loss(spec.data, network, dataset) if spec.data is not None else None
    steps = [_filled_in(step, learnt, differentiated) for step in steps_of(spec)]
    return spec.model_copy(update={"preset": None, "steps": steps, "data": data})


def _filled_in(step: Step, learnt: str, differentiated: GradientLoss | None) -> Step:
    if isinstance(step, FinetuneStep) and step.loss is None:
        return step.model_copy(update={"loss": learnt})
    if isinstance(step, PruneStep):
        normalize = step.normalize or CRITERIA[step.criterion].normalize
        loss = step.loss or (differentiated if needs_gradients(step.criterion) else None)
        return step.model_copy(update={"normalize": normalize, "loss": loss})
    return step


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
            why = (
                f"`{step}` cannot come after `{earlier.step}` (step {before}): "
                f"{earlier.step} makes integers, which are not cut, trained or quantized again. "
                f"Put `{earlier.step}` last, once."
            )
            yield FieldProblem(pointer=pointer, message=why)
            return


def _check_needs(spec: Spec, step: Step, pointer: str) -> Iterable[FieldProblem]:
    purpose = FOLLOWS[step.step].data_for
    if purpose is not None and spec.data is None:
        whose = "The" if pointer != "/preset" else f"The preset {spec.preset!r} has a"
        needs = "needs" if pointer != "/preset" else "that needs"
        message = (
            f"{whose} `{step.step}` step {needs} data {purpose}; labels are not needed. "
            'Upload some (`POST /datasets`) and give `"data": {"dataset": "dat_…"}`.'
        )
        yield FieldProblem(pointer=pointer, message=message)


def _check_prune(step: PruneStep, network: NetworkInspection, pointer: str, *, first: bool) -> Iterable[FieldProblem]:
    unmatched = list(_check_globs(step.layers, network.layers, pointer))
    yield from unmatched
    if not network.groups:
        reasons = [f"{layer.name} {layer.reason}" for layer in network.layers if layer.reason is not None]
        because = f": {'; '.join(reasons[:3])}" if reasons else ""
        yield FieldProblem(pointer=pointer, message=f"No channels of this network can be removed{because}.")
        return
    if unmatched or not first:
        return
    widths = {layer.name: layer.shape[0] for layer in network.layers if layer.shape}
    free = [group for group in network.groups if not any(_is_skipped(name, step.layers) for name in group.layers)]
    if not free:
        message = "Every group of channels has a layer that is skipped, so nothing would be removed: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)
        return
    bare = list(check_batch_norm(network, free, step.criterion, step.scope, f"{pointer}/criterion"))
    yield from bare
    if bare:
        return
    widest = max(max([group.units, *(widths.get(name, 0) for name in group.layers)]) for group in free)
    if widest <= step.round_to:
        message = (
            f"Nothing would be removed: no group has more than {widest} channels, and `round_to` keeps multiples "
            f"of {step.round_to}. Lower `round_to`."
        )
        yield FieldProblem(pointer=f"{pointer}/round_to", message=message)
        return
    units = sum(group.units for group in free)
    if step.amount.channels is not None and step.amount.channels * units < 1:
        message = (
            f"Nothing would be removed: {step.amount.channels:g} of {units} channels is less than one. "
            f"Ask for at least {1 / units:.2g}."
        )
        yield FieldProblem(pointer=f"{pointer}/amount/channels", message=message)


def _check_finetune(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, step: FinetuneStep, pointer: str
) -> Iterable[FieldProblem]:
    if step.loss == "distill" or spec.data is None or dataset is None:
        return
    output = output_that_counts(spec.data, network)
    field = f"{pointer}/loss" if spec.steps is not None else pointer
    if dataset.labels is None or effective_task(spec.data, dataset) == "none":
        if step.loss is None:
            return  # The default is `distill` then.
        lacking = "a task and `data.task` is `none`: name the task, or"
        if dataset.labels is None:
            lacking = "labels and the data has none:"
        message = f"The loss {step.loss!r} needs {lacking} use `distill`."
        yield FieldProblem(pointer=field, message=message, allowed=["distill"])
    elif "float" not in output.dtype:
        message = (
            f"The output {output.name!r} is {output.dtype}, so no gradient leads from the labels to the weights: "
            "name the output with the scores in `data.output`, or use the loss `distill`."
        )
        yield FieldProblem(pointer=field, message=message, allowed=["distill"])


def _check_quantize(step: QuantizeStep, network: NetworkInspection, pointer: str) -> Iterable[FieldProblem]:
    unmatched = list(_check_globs(step.layers, network.layers, pointer))
    yield from unmatched
    if not unmatched and network.layers and all(_is_skipped(layer.name, step.layers) for layer in network.layers):
        message = "Every layer is skipped, so nothing would be quantized: skip fewer."
        yield FieldProblem(pointer=f"{pointer}/layers", message=message)


def _check_globs(
    choices: Sequence[LayerChoice | LayerSparsity], layers: Sequence[LayerInfo], pointer: str
) -> Iterable[FieldProblem]:
    names = [layer.name for layer in layers]
    for index, choice in enumerate(choices):
        if not any(fnmatchcase(name, choice.match) for name in names):
            message = f"No layer's name matches {choice.match!r}{_nearest(choice.match, names)}."
            yield FieldProblem(pointer=f"{pointer}/layers/{index}/match", message=message)


def _is_skipped(name: str, choices: Sequence[LayerChoice]) -> bool:
    return any(fnmatchcase(name, choice.match) for choice in choices)


def _nearest(asked: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(asked, list(names), n=3, cutoff=0.4)
    return f"; the nearest are {', '.join(close)}" if close else ""
