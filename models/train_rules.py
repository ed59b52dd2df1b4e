"""What training may ask of the data; a part of `rules.py`."""

from __future__ import annotations

from collections.abc import Iterable

from models.data_rules import output_that_counts
from models.errors import FieldProblem
from models.inspection import DatasetInspection, NetworkInspection
from models.label_rules import effective_task, is_labelled
from models.spec import Schedule, Spec, Training


def check_training(
    spec: Spec, network: NetworkInspection, dataset: DatasetInspection | None, training: Training, pointer: str
) -> Iterable[FieldProblem]:
    """`pointer` is where `training` stands."""
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
