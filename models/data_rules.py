"""Whether data fits a network: names, shapes and dtypes of the inputs, labels of the task, classes of the output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.errors import FieldProblem
from models.image_rules import check_image_sizes
from models.inspection import DatasetInspection, NetworkInspection, TensorInfo
from models.label_rules import (
    check_ignore,
    check_labels,
    check_metric,
    check_output,
    default_ignore,
    effective_task,
    is_labelled,
    shown,
    token_input,
)
from models.metrics import metrics_of
from models.spec import Data, Transform
from models.split_rules import why_no_three_parts


def check_data(data: Data, network: NetworkInspection, dataset: DatasetInspection) -> list[FieldProblem]:
    """Every problem of `data`, in the order of its fields."""
    problems = list(_check_inputs(network.inputs, dataset))
    fitting = not problems
    without_a_part = why_no_three_parts(dataset.samples, dataset.splits)
    if without_a_part is not None:
        problems.append(FieldProblem(pointer="/data/dataset", message=without_a_part))
    wrong_labels = list(check_labels(data, network.inputs, dataset))
    problems += wrong_labels
    problems += check_ignore(data, dataset)
    problems += check_metric(data, dataset)
    if fitting:
        problems += _check_transform(data.transform, network.inputs, dataset)
    output = _check_output_name(data, network)
    problems += output
    if not output and not wrong_labels:
        fed = _feeding(network.inputs, dataset) if fitting else None
        problems += check_output(output_that_counts(data, network), data, fed, token_input(network.inputs), dataset)
    return problems


def resolve_data(data: Data, network: NetworkInspection, dataset: DatasetInspection) -> Data:
    """`data` with task, metric, scale, output and ignored label filled in; only after `check_data` found nothing."""
    task = effective_task(data, dataset)
    metric = data.metric or metrics_of(task if is_labelled(data, dataset) else "none")[0]
    transform = data.transform
    if transform.scale is None:
        transform = transform.model_copy(update={"scale": _default_scale(network.inputs, dataset)})
    update = {
        "task": task,
        "metric": metric,
        "transform": transform,
        "output": output_that_counts(data, network).name,
        "ignore": default_ignore(data, dataset),
    }
    return data.model_copy(update=update)


def output_that_counts(data: Data, network: NetworkInspection) -> TensorInfo:
    """The output that `data.output` names, else the first."""
    return next((output for output in network.outputs if output.name == data.output), network.outputs[0])


def _check_inputs(inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> Iterable[FieldProblem]:
    if dataset.holds_images:
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
        line = f"input {shown(info, drop_batch=False)}, array {shown(array, drop_batch=True)}"
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


def _shown_all(infos: Sequence[TensorInfo], *, drop_batch: bool) -> str:
    return ", ".join(shown(info, drop_batch=drop_batch) for info in infos) or "nothing"


def _check_transform(
    transform: Transform, inputs: Sequence[TensorInfo], dataset: DatasetInspection
) -> Iterable[FieldProblem]:
    if not dataset.holds_images:
        for field in ("resize", "crop"):
            if getattr(transform, field) is not None:
                message = f"`{field}` is for image files; arrays must have the network's size already. Leave it out."
                yield FieldProblem(pointer=f"/data/transform/{field}", message=message)
    else:
        yield from check_image_sizes(transform, inputs[0], dataset.image_sizes)
    floats = [info for info in inputs if _is_float(info.dtype)]
    for field in ("scale", "mean", "std"):
        if getattr(transform, field) is not None and not floats:
            message = f"`{field}` is for floating-point inputs and this network has none. Leave it out."
            yield FieldProblem(pointer=f"/data/transform/{field}", message=message)
    fed = _feeding(inputs, dataset) if not dataset.holds_images else None
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


def _default_scale(inputs: Sequence[TensorInfo], dataset: DatasetInspection) -> float | None:
    """1/255 for images and uint8 arrays, else 1; `None` where it differs between inputs, or no input is scaled."""
    if dataset.holds_images:
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
