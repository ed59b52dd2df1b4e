"""Whether labels fit a task and the output of the network that counts; a part of `data_rules.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from models.errors import FieldProblem
from models.inspection import DatasetInspection, LabelInfo, TensorInfo
from models.metrics import default_task, metrics_of
from models.spec import Data, Task

DEFAULT_IGNORE: dict[Task, int] = {"segmentation": 255, "tagging": -100, "causal_lm": -100}
"""The label that does not count, by task: PASCAL VOC's for maps, torch's for the positions of a sequence."""

POSITION_TASKS: tuple[Task, ...] = ("tagging", "causal_lm")
"""One class for each position of a sequence."""


def effective_task(data: Data, dataset: DatasetInspection) -> Task:
    """The task asked for, or what the labels suggest."""
    return data.task or default_task(dataset.labels)


def is_labelled(data: Data, dataset: DatasetInspection) -> bool:
    """Whether there is a right answer to learn: labels and a task, or the next token of a language model."""
    task = effective_task(data, dataset)
    return task == "causal_lm" or (task != "none" and dataset.labels is not None)


def default_ignore(data: Data, dataset: DatasetInspection) -> int | None:
    """The label that does not count. A language model that reads its labels off its input ignores none of itself."""
    task = effective_task(data, dataset)
    if data.ignore is not None or dataset.labels is None:
        return data.ignore
    return DEFAULT_IGNORE.get(task)


def token_input(inputs: Sequence[TensorInfo]) -> int | None:
    """The position of the input with the tokens: `input_ids`, else the first one of whole numbers [N, length]."""
    whole = [place for place, info in enumerate(inputs) if "int" in info.dtype and len(info.shape) == 2]
    named = [place for place in whole if inputs[place].name == "input_ids"]
    return next(iter([*named, *whole]), None)


def mask_input(inputs: Sequence[TensorInfo]) -> int | None:
    """The position of the input `attention_mask` [N, length], which is zero where a token is padding."""
    names = [(info.name, len(info.shape)) for info in inputs]
    return names.index(("attention_mask", 2)) if ("attention_mask", 2) in names else None


def class_dimension(shape: Sequence[int | None], task: Task, positions: int | None) -> int | None:
    """Which dimension of an output tells classes apart; `None`: there is none, so one score stands for two classes.

    In `tagging` [N, length, classes] or [N, classes, length], the former where both are possible; in `causal_lm` the
    former. Otherwise dimension 1."""
    if len(shape) == 1 or (task == "segmentation" and len(shape) == 3):
        return None
    if task == "causal_lm":
        return len(shape) - 1
    if task == "tagging":
        if len(shape) == 2:
            return None
        return 1 if shape[1] != positions and shape[2] == positions else 2
    return 1


def class_channels(shape: Sequence[int | None], task: Task, positions: int | None = None) -> int | None:
    """How many classes an output tells apart; `None` where that may vary. 1 is one score, for two classes."""
    dimension = class_dimension(shape, task, positions)
    return 1 if dimension is None else shape[dimension]


def check_labels(data: Data, inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> Iterable[FieldProblem]:
    labels, task = dataset.labels, effective_task(data, dataset)
    if task == "none" or (task == "embedding" and labels is None):
        return
    if labels is None and task == "causal_lm":
        if token_input(inputs) is None:
            message = (
                "The task 'causal_lm' takes its labels from an input of whole numbers [N, length], and the network has "
                "none: send the token that follows at each position as `y`."
            )
            yield FieldProblem(pointer="/data/task", message=message)
        return
    if labels is None:
        message = f"The task {task!r} needs labels and the data has none: use `none`, or send the labels as `y`."
        yield FieldProblem(pointer="/data/task", message=message, allowed=["none"])
        return
    ignored = default_ignore(data, dataset)
    wanted = _wanted(task, labels, ignored)
    if wanted is not None:
        suggested = default_task(labels)
        suggests = f" They suggest {suggested!r}." if suggested != task else ""
        message = (
            f"The task {task!r} takes {wanted}; the labels are {labels.dtype} {['N', *labels.shape]}"
            f"{_range(labels)}.{suggests}"
        )
        yield FieldProblem(pointer="/data/task", message=message)
    elif task in ("classification", "segmentation", "tagging", "embedding") and labels.classes == 1:
        message = (
            f"Every label is {labels.minimum:g}: with one class nothing can be learnt or measured. "
            "Send samples of every class, or use `none`."
        )
        yield FieldProblem(pointer="/data/task", message=message, allowed=["none"])


def _wanted(task: Task, labels: LabelInfo, ignored: int | None) -> str | None:
    """What the task takes, when the labels are not that."""
    whole = not _is_float(labels.dtype)
    lowest, highest = labels.minimum or 0.0, labels.maximum or 0.0
    one = whole and labels.shape in ([], [1])
    if task == "classification" and not (one and lowest >= 0):
        return "one whole number a sample, counted from 0"
    if task == "embedding" and not one:
        return "one whole number a sample, the same for samples that belong together"
    if task == "multilabel" and not (len(labels.shape) == 1 and lowest >= 0 and highest <= 1):
        return "a row of zeros and ones for each sample"
    counted = lowest >= 0 or lowest == ignored
    flat = len(labels.shape) == 2 or (len(labels.shape) == 3 and labels.shape[0] == 1)
    if task == "segmentation" and not (whole and flat and counted):
        return "a map [height, width] of whole numbers, counted from 0, for each sample"
    if task in POSITION_TASKS and not (whole and len(labels.shape) == 1 and counted):
        return f"a whole number for each position, counted from 0 (or {ignored}, which does not count)"
    return None


def _range(labels: LabelInfo) -> str:
    return f" from {labels.minimum:g} to {labels.maximum:g}" if labels.minimum is not None else ""


def check_ignore(data: Data, dataset: DatasetInspection) -> Iterable[FieldProblem]:
    task = effective_task(data, dataset)
    if data.ignore is not None and task not in DEFAULT_IGNORE:
        message = f"Every label of the task {task!r} counts: leave `ignore` out."
        yield FieldProblem(pointer="/data/ignore", message=message)


def check_metric(data: Data, dataset: DatasetInspection) -> Iterable[FieldProblem]:
    task, labelled = effective_task(data, dataset), is_labelled(data, dataset)
    possible = metrics_of(task if labelled else "none")
    if data.metric is not None and data.metric not in possible:
        what = f"the task {task!r}" if labelled or dataset.labels is not None else "data without labels"
        message = f"The metric {data.metric!r} cannot be computed for {what}: choose from {', '.join(possible)}."
        yield FieldProblem(pointer="/data/metric", message=message, allowed=list(possible))


def check_output(
    output: TensorInfo, data: Data, fed: Sequence[TensorInfo] | None, tokens: int | None, dataset: DatasetInspection
) -> Iterable[FieldProblem]:
    """`fed` are the arrays that feed the inputs, where they fit; `tokens` is `token_input` of those."""
    task, labels = effective_task(data, dataset), dataset.labels
    positions = None
    if task in POSITION_TASKS:
        if labels is not None:
            positions = labels.shape[0]
        elif fed is not None and tokens is not None:
            positions = fed[tokens].shape[0]
    shaped = list(_check_shape(output, task, positions))
    yield from shaped
    if shaped or labels is None:
        return
    yield from _check_classes(output, data, labels, positions, dataset)
    channels = class_channels(output.shape, task, positions)
    if data.metric == "top5_accuracy" and task == "classification" and channels is not None and channels <= 5:
        message = f"Among {max(2, channels)} classes the right one is always in the first five: use `accuracy`."
        yield FieldProblem(pointer="/data/metric", message=message, allowed=["accuracy", "macro_f1", "agreement"])


def _check_shape(output: TensorInfo, task: Task, positions: int | None) -> Iterable[FieldProblem]:
    """Of the output, for tasks that take one of their own."""
    sample = output.shape[1:]
    if task == "embedding":
        takes = "a floating-point output [N, features]"
        fits = _is_float(output.dtype) and len([size for size in sample if size != 1]) == 1
    elif task == "causal_lm":
        takes = f"an output [N, {positions or 'length'}, vocabulary]"
        fits = len(sample) == 2 and (positions is None or sample[0] in (None, positions))
    elif task == "tagging":
        takes = f"an output [N, {positions}, classes] or [N, classes, {positions}]"
        fits = (len(sample) == 2 and (positions in sample or None in sample)) or sample in ([positions], [None])
    else:
        return
    if not fits:
        message = (
            f"The task {task!r} takes {takes}; the output is {shown(output, drop_batch=False)}. "
            "Name another output in `data.output`, or set `data.task` to what the network does."
        )
        yield FieldProblem(pointer="/data/task", message=message)


def _check_classes(
    output: TensorInfo, data: Data, labels: LabelInfo, positions: int | None, dataset: DatasetInspection
) -> Iterable[FieldProblem]:
    task, sample = effective_task(data, dataset), output.shape[1:]
    told_shape = shown(output, drop_batch=False)
    remedy = "Send the labels it was trained on, or name another output in `data.output`."
    if task == "regression":
        sizes = [size for size in sample if size is not None]
        if len(sizes) == len(sample) and math.prod(sizes) != math.prod(labels.shape):
            message = f"The labels have shape {['N', *labels.shape]} and the output is {told_shape}. {remedy}"
            yield FieldProblem(pointer="/data/dataset", message=message)
        return
    classes = _class_count(data, dataset, labels)
    channels = class_channels(output.shape, task, positions)
    if classes is None or channels is None or (channels == 1 and classes <= 2 and task != "multilabel"):
        return
    if classes > channels or (task == "multilabel" and classes != channels):
        what = "a column for each of" if task == "multilabel" else "classes up to number"
        number = classes if task == "multilabel" else classes - 1
        noun = " labels" if task == "multilabel" else ""
        told = str(channels) if channels > 1 else "one yes or no"
        message = f"The labels have {what} {number}{noun} and the output is {told_shape}, for {told}. {remedy}"
        yield FieldProblem(pointer="/data/dataset", message=message)


def _class_count(data: Data, dataset: DatasetInspection, labels: LabelInfo) -> int | None:
    """How many classes the network must know; `None` when the inspection cannot tell."""
    task = effective_task(data, dataset)
    if task == "multilabel":
        return labels.shape[0]
    if task in DEFAULT_IGNORE and labels.maximum is not None:
        return None if labels.maximum == default_ignore(data, dataset) else int(labels.maximum) + 1
    if task != "classification" or labels.maximum is None:
        return None
    return len(dataset.class_names) if dataset.class_names else int(labels.maximum) + 1


def shown(info: TensorInfo, *, drop_batch: bool) -> str:
    sizes = info.shape if drop_batch else info.shape[1:]
    return f"{info.name!r} {info.dtype} [{', '.join(['N', *('any' if s is None else str(s) for s in sizes)])}]"


def _is_float(dtype: str) -> bool:
    return "float" in dtype
