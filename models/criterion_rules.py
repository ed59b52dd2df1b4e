"""What a criterion must be given, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from models.criteria import CRITERIA, GradientLoss, UnitCriterion, needs_gradients
from models.data_rules import output_that_counts
from models.errors import FieldProblem
from models.inspection import DatasetInspection, GroupInfo, NetworkInspection
from models.label_rules import effective_task, is_labelled
from models.spec import Data, PruneStep, SparsifyStep, Spec

ANOTHER = "use a criterion that reads weights alone, such as `l2`"


def check_gradients(
    spec: Spec, network: NetworkInspection, criterion: UnitCriterion, pointer: str
) -> Iterable[FieldProblem]:
    """A criterion that reads gradients needs samples, and a network whose output has any."""
    if not needs_gradients(criterion):
        return
    if spec.data is None:
        message = (
            f"The criterion {criterion!r} needs data to take gradients from; labels are not needed. Upload some "
            f'(`POST /datasets`) and give `"data": {{"dataset": "dat_…"}}`, or {ANOTHER}.'
        )
        yield FieldProblem(pointer=pointer, message=message, allowed=_without_gradients())
    elif not any("float" in output.dtype for output in network.outputs):
        message = (
            f"No output of the network is floating-point, so the criterion {criterion!r} has no gradient to go by: "
            f"export the network without the argmax at its end, or {ANOTHER}."
        )
        yield FieldProblem(pointer=pointer, message=message, allowed=_without_gradients())


def check_differentiation(
    spec: Spec,
    network: NetworkInspection,
    dataset: DatasetInspection | None,
    criterion: UnitCriterion,
    step: PruneStep | SparsifyStep,
    pointer: str,
) -> Iterable[FieldProblem]:
    """Samples and a loss are for a criterion that reads gradients, and the task's loss for data with labels."""
    yield from check_samples(criterion, step.samples, pointer)
    if step.loss is None:
        return
    if not needs_gradients(criterion):
        message = f"The criterion {criterion!r} reads no gradients, so no loss is differentiated: leave `loss` out."
        yield FieldProblem(pointer=f"{pointer}/loss", message=message)
    elif step.loss == "task" and spec.data is not None and default_loss(spec.data, network, dataset) == "distill":
        embeds = dataset is not None and effective_task(spec.data, dataset) == "embedding"
        pairs = " (embeddings are learnt from pairs, gradients are of one sample)" if embeds else ""
        message = (
            "Gradients of the loss 'task' need labels, a task and an output of scores that are floating-point; this "
            f"data and network do not have them all{pairs}: use 'distill'."
        )
        yield FieldProblem(pointer=f"{pointer}/loss", message=message, allowed=["distill"])


def check_samples(criterion: UnitCriterion, samples: int | None, pointer: str) -> Iterable[FieldProblem]:
    """A number of samples is for a criterion that takes gradients of them."""
    if samples is not None and not needs_gradients(criterion):
        message = f"The criterion {criterion!r} reads no gradients, so no samples are taken: leave `samples` out."
        yield FieldProblem(pointer=f"{pointer}/samples", message=message)


def default_loss(data: Data, network: NetworkInspection, dataset: DatasetInspection | None) -> GradientLoss:
    """What is differentiated without a choice. Embeddings are learnt from pairs, and gradients are of one sample."""
    if dataset is None or not is_labelled(data, dataset) or effective_task(data, dataset) == "embedding":
        return "distill"
    return "task" if "float" in output_that_counts(data, network).dtype else "distill"


def scaled_layers(network: NetworkInspection) -> set[str]:
    """The layers whose scales `bn_gamma` ranks by."""
    return {layer.name for layer in network.layers if layer.kind.startswith("BatchNorm")}


def check_batch_norm(
    network: NetworkInspection,
    groups: Sequence[GroupInfo],
    criterion: UnitCriterion,
    scope: Literal["global", "layer"],
    pointer: str,
) -> Iterable[FieldProblem]:
    """`bn_gamma` needs a BatchNorm in one of `groups`; in each of them where every group loses the same fraction."""
    if CRITERIA[criterion].needs != "batch_norm":
        return
    scaled = scaled_layers(network)
    bare = [group for group in groups if not scaled.intersection(group.layers)]
    if len(bare) == len(groups):
        message = (
            f"The criterion {criterion!r} ranks channels by the scale of their BatchNorm, and no group that may shrink "
            f"has one (an exporter may have folded them into the convolutions): {ANOTHER}."
        )
        yield FieldProblem(pointer=pointer, message=message)
    elif bare and scope == "layer":
        names = ", ".join(group.id for group in bare[:5])
        message = (
            f"The criterion {criterion!r} ranks channels by the scale of their BatchNorm, and these groups have none: "
            f'{names}. Skip their layers, use `"scope": "global"`, which leaves them alone, or {ANOTHER}.'
        )
        yield FieldProblem(pointer=pointer, message=message)


def _without_gradients() -> list[str]:
    return [name for name in CRITERIA if not needs_gradients(name)]
