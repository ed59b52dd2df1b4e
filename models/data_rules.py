"""Whether data fits a network: names, shapes and dtypes of the inputs, labels of the task, classes of the output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from models.errors import FieldProblem
from models.inspection import DatasetInspection, LabelInfo, NetworkInspection, TensorInfo
from models.metrics import default_task, metrics_of
from models.spec import Data, Metric, Task, Transform

IGNORED_PIXEL = 255
"""In segmentation maps: no class here."""


def check_data(data: Data, network: NetworkInspection, dataset: DatasetInspection) -> list[FieldProblem]:
    """Every problem of `data`, in the order of its fields."""
    problems = list(_check_inputs(network.inputs, dataset))
    fitting = not problems
    task = effective_task(data, dataset)
    wrong_labels = list(_check_labels(task, dataset))
    problems += wrong_labels
    problems += _check_metric(data.metric, task, dataset)
    if fitting:
        problems += _check_transform(data.transform, network.inputs, dataset)
    output = _check_output_name(data, network)
    problems += output
    if not output and not wrong_labels and dataset.labels is not None:
        counting = output_that_counts(data, network)
        problems += _check_output(counting, task, dataset, dataset.labels)
        problems += _check_top5(data.metric, counting, task)
    return problems


def resolve_data(data: Data, network: NetworkInspection, dataset: DatasetInspection) -> Data:
    """`data` with task, metric, scale and output filled in; only after `check_data` found nothing."""
    task = effective_task(data, dataset)
    metric = data.metric or metrics_of(task)[0]
    transform = data.transform
    if transform.scale is None:
        transform = transform.model_copy(update={"scale": _default_scale(network.inputs, dataset)})
    update = {"task": task, "metric": metric, "transform": transform, "output": output_that_counts(data, network).name}
    return data.model_copy(update=update)


def effective_task(data: Data, dataset: DatasetInspection) -> Task:
    """The task asked for, or what the labels suggest."""
    return data.task or default_task(dataset.labels)


def output_that_counts(data: Data, network: NetworkInspection) -> TensorInfo:
    """The output that `data.output` names, else the first."""
    return next((output for output in network.outputs if output.name == data.output), network.outputs[0])


def _check_inputs(inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> Iterable[FieldProblem]:
    if dataset.format == "image_folder":
        yield from _check_image_input(inputs)
        return
    arrays = _feeding(inputs, dataset)
    if arrays is None:
        wanted = _shown_all(inputs, drop_batch=False)
        found = _shown_all(dataset.inputs, drop_batch=True)
        remedy = "`x`" if len(inputs) == 1 else "`x0`, `x1`, … in call order"
        message = f"The network takes {wanted}; the data has {found}. Name the arrays after the inputs, or {remedy}."
        yield FieldProblem(pointer="/data/dataset", message=message)
        return
    lines, fits = [], True
    for info, array in zip(inputs, arrays, strict=True):
        good = _shape_fits(array.shape, info) and _dtype_fits(array.dtype, info.dtype)
        fits = fits and good
        line = f"input {_shown(info, drop_batch=False)}, array {_shown(array, drop_batch=True)}"
        lines.append(line if good else f"{line} <- differs{_hint(array, info)}")
    if not fits:
        message = f"The data does not fit the network's inputs: {'; '.join(lines)}."
        yield FieldProblem(pointer="/data/dataset", message=message)


def _check_image_input(inputs: Sequence[TensorInfo]) -> Iterable[FieldProblem]:
    first = inputs[0]
    image = len(inputs) == 1 and len(first.shape) == 4 and first.shape[1] in (None, 1, 3)
    if not image or not _is_float(first.dtype):
        message = (
            "Images feed one floating-point input [N, 1 or 3, height, width]; the network takes "
            f"{_shown_all(inputs, drop_batch=False)}. Send the data as `.npz`."
        )
        yield FieldProblem(pointer="/data/dataset", message=message)


def _feeding(inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> list[TensorInfo] | None:
    """The arrays in the order of the inputs: by the inputs' names, else `x` for the only one, else `x0, x1, …`."""
    arrays = {array.name: array for array in dataset.inputs}
    own = [info.name for info in inputs]
    numbered = [f"x{index}" for index in range(len(inputs))]
    for names in (own, ["x"] if len(inputs) == 1 else [], numbered):
        if names and all(name in arrays for name in names):
            return [arrays[name] for name in names]
    return None


def _shape_fits(sample: Sequence[int | None], info: TensorInfo) -> bool:
    wanted = info.shape[1:]
    return len(sample) == len(wanted) and all(w is None or w == s for w, s in zip(wanted, sample, strict=True))


def _dtype_fits(array: str, wanted: str) -> bool:
    whole = array.startswith(("int", "uint", "bool"))
    return whole or (_is_float(wanted) and _is_float(array))


def _is_float(dtype: str) -> bool:
    return "float" in dtype


def _hint(array: TensorInfo, info: TensorInfo) -> str:
    moved = [array.shape[-1], *array.shape[:-1]] if len(array.shape) == 3 else []
    return " (put the channels first: `np.moveaxis(x, -1, 1)`)" if moved and _shape_fits(moved, info) else ""


def _shown(info: TensorInfo, *, drop_batch: bool) -> str:
    sizes = info.shape if drop_batch else info.shape[1:]
    return f"{info.name!r} {info.dtype} [{', '.join(['N', *('any' if s is None else str(s) for s in sizes)])}]"


def _shown_all(infos: Sequence[TensorInfo], *, drop_batch: bool) -> str:
    return ", ".join(_shown(info, drop_batch=drop_batch) for info in infos) or "nothing"


def _check_labels(task: Task, dataset: DatasetInspection) -> Iterable[FieldProblem]:
    labels = dataset.labels
    if task == "none":
        return
    if labels is None:
        message = f"The task {task!r} needs labels and the data has none: use `none`, or send the labels as `y`."
        yield FieldProblem(pointer="/data/task", message=message, allowed=["none"])
        return
    wanted = _wanted(task, labels)
    if wanted is not None:
        message = (
            f"The task {task!r} takes {wanted}; the labels are {labels.dtype} {['N', *labels.shape]}"
            f"{_range(labels)}. They suggest {default_task(labels)!r}."
        )
        yield FieldProblem(pointer="/data/task", message=message)
    elif task in ("classification", "segmentation") and labels.classes == 1:
        message = (
            f"Every label is {labels.minimum:g}: with one class nothing can be learnt or measured. "
            "Send samples of every class, or use `none`."
        )
        yield FieldProblem(pointer="/data/task", message=message, allowed=["none"])


def _wanted(task: Task, labels: LabelInfo) -> str | None:
    """What the task takes, when the labels are not that."""
    whole = not _is_float(labels.dtype)
    lowest, highest = labels.minimum or 0.0, labels.maximum or 0.0
    if task == "classification" and not (whole and labels.shape in ([], [1]) and lowest >= 0):
        return "one whole number a sample, counted from 0"
    if task == "multilabel" and not (len(labels.shape) == 1 and lowest >= 0 and highest <= 1):
        return "a row of zeros and ones for each sample"
    flat = len(labels.shape) == 2 or (len(labels.shape) == 3 and labels.shape[0] == 1)
    if task == "segmentation" and not (whole and flat and lowest >= 0):
        return "a map [height, width] of whole numbers, counted from 0, for each sample"
    return None


def _range(labels: LabelInfo) -> str:
    return f" from {labels.minimum:g} to {labels.maximum:g}" if labels.minimum is not None else ""


def _check_metric(metric: Metric | None, task: Task, dataset: DatasetInspection) -> Iterable[FieldProblem]:
    possible = metrics_of(task if dataset.labels is not None else "none")
    if metric is not None and metric not in possible:
        what = f"the task {task!r}" if dataset.labels is not None else "data without labels"
        message = f"The metric {metric!r} cannot be computed for {what}: choose from {', '.join(possible)}."
        yield FieldProblem(pointer="/data/metric", message=message, allowed=list(possible))


def _check_transform(
    transform: Transform, inputs: Sequence[TensorInfo], dataset: DatasetInspection
) -> Iterable[FieldProblem]:
    if dataset.format == "npz":
        for field in ("resize", "crop"):
            if getattr(transform, field) is not None:
                message = f"`{field}` is for image files; arrays must have the network's size already. Leave it out."
                yield FieldProblem(pointer=f"/data/transform/{field}", message=message)
    else:
        yield from _check_crop(transform, inputs[0])
    floats = [info for info in inputs if _is_float(info.dtype)]
    for field in ("scale", "mean", "std"):
        if getattr(transform, field) is not None and not floats:
            message = f"`{field}` is for floating-point inputs and this network has none. Leave it out."
            yield FieldProblem(pointer=f"/data/transform/{field}", message=message)
    fed = _feeding(inputs, dataset) if dataset.format == "npz" else None
    for field, numbers in (("mean", transform.mean), ("std", transform.std)):
        for info in floats if numbers is not None else ():
            sample = fed[list(inputs).index(info)].shape if fed is not None else info.shape[1:]
            channels = sample[0] if sample else 1
            if channels is not None and len(numbers or ()) not in (1, channels):
                message = (
                    f"`{field}` has {len(numbers or ())} numbers and the input {info.name!r} has {channels} channels: "
                    "give one number, or one for each channel."
                )
                yield FieldProblem(pointer=f"/data/transform/{field}", message=message)


def _check_crop(transform: Transform, image: TensorInfo) -> Iterable[FieldProblem]:
    if transform.crop is None:
        return
    height, width = image.shape[2], image.shape[3]
    if any(side is not None and side != transform.crop for side in (height, width)):
        message = f"`crop` gives {transform.crop} x {transform.crop} pixels and the network takes {height} x {width}."
        yield FieldProblem(pointer="/data/transform/crop", message=message)
    if transform.resize is not None and transform.resize < transform.crop:
        message = f"`resize` to {transform.resize} is smaller than `crop` {transform.crop}: make it at least as large."
        yield FieldProblem(pointer="/data/transform/resize", message=message)


def _default_scale(inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> float | None:
    """1/255 for images and uint8 arrays, else 1; `None` where it differs between inputs, or no input is scaled."""
    if dataset.format == "image_folder":
        return 1 / 255
    fed = _feeding(inputs, dataset) or []
    dtypes = {array.dtype for info, array in zip(inputs, fed, strict=True) if _is_float(info.dtype)}
    scales = {1 / 255 if dtype == "uint8" else 1.0 for dtype in dtypes}
    return scales.pop() if len(scales) == 1 else None


def _check_output_name(data: Data, network: NetworkInspection) -> list[FieldProblem]:
    names = [output.name for output in network.outputs]
    if data.output is None or data.output in names:
        return []
    message = f"The network has no output {data.output!r}; it has {', '.join(names)}."
    return [FieldProblem(pointer="/data/output", message=message, allowed=names)]


def _check_output(
    output: TensorInfo, task: Task, dataset: DatasetInspection, labels: LabelInfo
) -> Iterable[FieldProblem]:
    sample = output.shape[1:]
    shown = _shown(output, drop_batch=False)
    remedy = "Send the labels it was trained on, or name another output in `data.output`."
    if task == "regression":
        sizes = [size for size in sample if size is not None]
        if len(sizes) == len(sample) and math.prod(sizes) != math.prod(labels.shape):
            message = f"The labels have shape {['N', *labels.shape]} and the output is {shown}. {remedy}"
            yield FieldProblem(pointer="/data/dataset", message=message)
        return
    classes = _class_count(task, dataset, labels)
    channels = class_channels(output.shape, task)
    if classes is None or channels is None or (channels == 1 and classes <= 2 and task != "multilabel"):
        return
    if classes > channels or (task == "multilabel" and classes != channels):
        what = "a column for each of" if task == "multilabel" else "classes up to number"
        number = classes if task == "multilabel" else classes - 1
        noun = " labels" if task == "multilabel" else ""
        told = str(channels) if channels > 1 else "one yes or no"
        message = f"The labels have {what} {number}{noun} and the output is {shown}, for {told}. {remedy}"
        yield FieldProblem(pointer="/data/dataset", message=message)


def _check_top5(metric: Metric | None, output: TensorInfo, task: Task) -> Iterable[FieldProblem]:
    channels = class_channels(output.shape, task)
    if metric == "top5_accuracy" and task == "classification" and channels is not None and channels <= 5:
        message = f"Among {max(2, channels)} classes the right one is always in the first five: use `accuracy`."
        yield FieldProblem(pointer="/data/metric", message=message, allowed=["accuracy", "macro_f1", "agreement"])


def class_channels(shape: Sequence[int | None], task: Task) -> int | None:
    """How many classes an output [N, classes, …] tells apart; `None` where that may vary.

    1 is one score, for two classes; so is an output [N], and a map [N, height, width], which have no such dimension."""
    if len(shape) == 1 or (task == "segmentation" and len(shape) == 3):
        return 1
    return shape[1]


def _class_count(task: Task, dataset: DatasetInspection, labels: LabelInfo) -> int | None:
    """How many classes the network must know; `None` when the inspection cannot tell."""
    if task == "multilabel":
        return labels.shape[0]
    if task not in ("classification", "segmentation") or labels.maximum is None:
        return None
    if task == "segmentation":
        return None if labels.maximum == IGNORED_PIXEL else int(labels.maximum) + 1
    return len(dataset.class_names) if dataset.class_names else int(labels.maximum) + 1
