"""What training may ask of the data; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable

from models.criterion_rules import scaled_layers
from models.data_rules import output_that_counts
from models.errors import FieldProblem
from models.inspection import DatasetInspection, NetworkInspection
from models.label_rules import effective_task, is_labelled
from models.spec import Schedule, Spec, Training


def check_training(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, training: Training, pointer: str
) -> Iterable[FieldProblem]:
    """`pointer` is where `training` stands."""
    yield from _check_norms(spec, network, training, pointer)
    yield from _check_images(spec, network, dataset, training, pointer)
    yield from _check_loss(spec, network, dataset, training, pointer)


def _check_norms(spec: Spec, network: NetworkInspection, training: Training, pointer: str) -> Iterable[FieldProblem]:
    """What training does to layers, or to what `prune` removes, wants those there."""
    at = pointer if spec.steps is not None else None
    if training.batch_norm == "freeze" and not scaled_layers(network):
        message = "The network has no BatchNorm whose statistics could stay: leave `batch_norm` out."
        yield FieldProblem(pointer=f"{at}/batch_norm" if at else pointer, message=message, allowed=["learn"])
    asked = training.regularize
    if asked is None or asked.penalty == "l1":
        return
    field = f"{at}/regularize" if at else pointer
    if not network.groups:
        message = (
            f"`{asked.penalty}` draws channels to zero that `prune` can remove, and the network has none: use `l1`, or "
            "leave `regularize` out."
        )
        yield FieldProblem(pointer=field, message=message)
    elif asked.penalty == "bn_gamma" and not any(scaled_layers(network).intersection(g.layers) for g in network.groups):
        message = (
            "`bn_gamma` draws the scales of BatchNorm layers to zero, and no channels that can be removed have one (an "
            "exporter may have folded them into the convolutions): use `group_lasso`."
        )
        yield FieldProblem(pointer=field, message=message)


def _check_images(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, training: Training, pointer: str
) -> Iterable[FieldProblem]:
    """What is for images, or for a GPU, wants one."""
    at = f"{pointer}/" if spec.steps is not None else None
    images = [info for info in network.inputs if len(info.shape) == 4 and "float" in info.dtype]
    if training.augment is not None:
        message = None
        if not images:
            message = "No input of the network is an image ([N, C, H, W], floating-point): leave `augment` out."
        elif spec.data is not None and dataset is not None and effective_task(spec.data, dataset) == "segmentation":
            message = "The labels are maps of the images, which `augment` would not move along: leave it out."
        if message is not None:
            yield FieldProblem(pointer=f"{at}augment" if at else pointer, message=message)
    if training.speed.channels_last is True and not images:
        message = "No input of the network is an image ([N, C, H, W]), so no channels can be last: leave it out."
        yield FieldProblem(pointer=f"{at}speed/channels_last" if at else pointer, message=message)
    if spec.device == "cpu":
        speed = training.speed
        for field, asked in (
            ("precision", speed.precision == "tf32"),
            ("cudnn_autotune", speed.cudnn_autotune is True),
        ):
            if asked:
                message = f"`{field}` asks for what CUDA devices have, and `device` is `cpu`: leave one of the two out."
                yield FieldProblem(pointer=f"{at}speed/{field}" if at else pointer, message=message)


def _check_loss(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, training: Training, pointer: str
) -> Iterable[FieldProblem]:
    """The task's loss wants labels, and an output with a gradient."""
    if training.loss == "distill" or spec.data is None or dataset is None:
        return
    output = output_that_counts(spec.data, network)
    field = f"{pointer}/loss" if spec.steps is not None else pointer
    if not is_labelled(spec.data, dataset):
        if training.loss is None:
            return  # The default is `distill` then.
        lacking = "a task and `data.task` is `none`: name the task, or"
        if dataset.labels is None:
            lacking = "labels and the data has none:"
        message = f"The loss {training.loss!r} needs {lacking} use `distill`."
        yield FieldProblem(pointer=field, message=message, allowed=["distill"])
    elif "float" not in output.dtype:
        message = (
            f"The output {output.name!r} is {output.dtype}, so no gradient leads from the labels to the weights: "
            "name the output with the scores in `data.output`, or use the loss `distill`."
        )
        yield FieldProblem(pointer=field, message=message, allowed=["distill"])
    elif effective_task(spec.data, dataset) == "embedding" and training.batch_size == 1:
        message = "Embeddings are learnt from pairs in a batch: make `batch_size` 2 or more, or use the loss `distill`."
        yield FieldProblem(pointer=f"{pointer}/batch_size" if spec.steps is not None else pointer, message=message)


def check_schedule(
    spec: Spec,
    network: NetworkInspection,
    dataset: DatasetInspection | None,
    schedule: Schedule | None,
    pointer: str,
) -> Iterable[FieldProblem]:
    """`pointer` is where the step with the schedule stands."""
    if schedule is None:
        return
    if spec.data is None:
        message = (
            "A schedule trains between its rounds and needs data for that; labels are not needed. Upload some "
            '(`POST /datasets`) and give `"data": {"dataset": "dat_…"}`, or leave `schedule` out.'
        )
        yield FieldProblem(pointer=f"{pointer}/schedule", message=message)
    yield from check_training(spec, network, dataset, schedule, f"{pointer}/schedule")
