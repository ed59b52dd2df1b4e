"""Everything a spec can be refused for before it runs, and what its defaults become."""

from __future__ import annotations

from typing import Any

import pytest

from models.criteria import CRITERIA, UnitCriterion
from models.inspection import (
    DatasetInspection,
    GroupInfo,
    ImageSizes,
    LabelInfo,
    LayerInfo,
    NetworkInspection,
    Notice,
    TensorInfo,
)
from models.presets import PRESETS
from models.rules import check, resolve
from models.spec import Spec, Task


def layer(name: str, kind: str, shape: list[int], group: str | None, reason: str | None = None) -> LayerInfo:
    return LayerInfo(
        name=name, kind=kind, shape=shape, parameters=9, macs=9, group=group, prunable=group is not None, reason=reason
    )


def tensor(name: str, dtype: str, *shape: int | None) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=list(shape))


RESNET = NetworkInspection(
    format="pt2",
    inputs=[tensor("x", "float32", None, 3, 32, 32)],
    outputs=[tensor("logits", "float32", None, 10), tensor("features", "float32", None, 64)],
    parameters=1000,
    macs=10_000,
    layers=[
        layer("conv1", "Conv2d", [16, 3, 3, 3], "g0"),
        layer("layer1.0.conv1", "Conv2d", [32, 16, 3, 3], "g1"),
        layer("layer1.0.conv2", "Conv2d", [16, 32, 3, 3], "g0"),
        layer("fc", "Linear", [10, 16], None, "makes an output of the network"),
    ],
    groups=[
        GroupInfo(id="g0", units=16, layers=["conv1", "layer1.0.conv2"]),
        GroupInfo(id="g1", units=32, layers=["layer1.0.conv1"]),
    ],
)
FROZEN = RESNET.model_copy(update={"groups": [], "layers": [RESNET.layers[3]]})
NARROW = RESNET.model_copy(
    update={
        "groups": [GroupInfo(id="g0", units=6, layers=["conv1"])],
        "layers": [layer("conv1", "Conv2d", [6, 3, 3, 3], "g0")],
    }
)
NORMALISED = RESNET.model_copy(
    update={
        "layers": [*RESNET.layers, layer("bn1", "BatchNorm2d", [16], "g0")],
        "groups": [GroupInfo(id="g0", units=16, layers=["conv1", "layer1.0.conv2", "bn1"]), RESNET.groups[1]],
    }
)
DECIDED = RESNET.model_copy(update={"outputs": [tensor("label", "int64", None)]})
TOKENS = RESNET.model_copy(
    update={"inputs": [tensor("input_ids", "int64", None, 16), tensor("mask", "int64", None, 16)]}
)

CLASSES = LabelInfo(dtype="int64", shape=[], classes=10, minimum=0, maximum=9)
ARRAYS = DatasetInspection(
    format="npz", samples=100, inputs=[tensor("x", "uint8", 3, 32, 32)], labels=CLASSES, splits=None
)
UNLABELLED = ARRAYS.model_copy(update={"labels": None})
IMAGES = DatasetInspection(
    format="image_folder",
    samples=100,
    inputs=[tensor("x", "uint8", 3, None, None)],
    labels=CLASSES,
    class_names=[f"class {index}" for index in range(10)],
)


def with_sizes(height: tuple[int, int], width: tuple[int, int]) -> DatasetInspection:
    sizes = ImageSizes(
        minimum_height=height[0], maximum_height=height[1], minimum_width=width[0], maximum_width=width[1]
    )
    return IMAGES.model_copy(update={"image_sizes": sizes})


def with_labels(**changes: Any) -> DatasetInspection:
    return ARRAYS.model_copy(update={"labels": CLASSES.model_copy(update=changes)})


def with_inputs(*inputs: TensorInfo) -> DatasetInspection:
    return ARRAYS.model_copy(update={"inputs": list(inputs)})


def spec(steps: list[dict[str, Any]] | None = None, *, data: dict[str, Any] | None = None, **fields: Any) -> Spec:
    document: dict[str, Any] = {"model": "net_1", **fields}
    if "preset" not in fields:
        document["steps"] = steps or [PRUNE]
    if data is not None:
        document["data"] = {"dataset": "dat_1", **data}
    return Spec.model_validate(document)


PRUNE = {"step": "prune", "amount": {"channels": 0.5}}
FINETUNE = {"step": "finetune"}
QUANTIZE = {"step": "quantize"}
NO_DATA = None

REFUSED: dict[str, tuple[Spec, NetworkInspection, DatasetInspection | None, str, str]] = {
    "an unknown preset": (
        spec(preset="balancd"),
        RESNET,
        NO_DATA,
        "/preset",
        "There is no preset 'balancd'; the nearest are balanced.",
    ),
    "prune after quantize": (
        spec([QUANTIZE, PRUNE], data={}),
        RESNET,
        ARRAYS,
        "/steps/1",
        "`prune` cannot come after `quantize` (step 0): quantize makes integers, which are not cut, trained or "
        "quantized again. Put `quantize` last, once.",
    ),
    "finetune after quantize": (
        spec([PRUNE, QUANTIZE, FINETUNE], data={}),
        RESNET,
        ARRAYS,
        "/steps/2",
        "`finetune` cannot come after `quantize` (step 1)",
    ),
    "quantize twice": (
        spec([QUANTIZE, QUANTIZE], data={}),
        RESNET,
        ARRAYS,
        "/steps/1",
        "`quantize` cannot come after `quantize` (step 0)",
    ),
    "quantize without data": (
        spec([QUANTIZE]),
        RESNET,
        NO_DATA,
        "/steps/0",
        "The `quantize` step needs data to calibrate with; labels are not needed. Upload some "
        '(`POST /datasets`) and give `"data": {"dataset": "dat_…"}`.',
    ),
    "finetune without data": (
        spec([PRUNE, FINETUNE]),
        RESNET,
        NO_DATA,
        "/steps/1",
        "The `finetune` step needs data to train on",
    ),
    "a preset without data": (
        spec(preset="half"),
        RESNET,
        NO_DATA,
        "/preset",
        "The preset 'half' has a `finetune` step that needs data to train on",
    ),
    "data that is not there": (spec(data={}), RESNET, NO_DATA, "/data", "one of the two is missing here"),
    "require without data": (
        spec(require={"max_metric_drop": 0.1}),
        RESNET,
        NO_DATA,
        "/require",
        "`require` is decided on validation data, and there is none: give `data`, or leave `require` out.",
    ),
    "a task loss without labels": (
        spec([{**FINETUNE, "loss": "task"}], data={}),
        RESNET,
        UNLABELLED,
        "/steps/0/loss",
        "The loss 'task' needs labels and the data has none: use `distill`.",
    ),
    "both losses without a task": (
        spec([{**FINETUNE, "loss": "both"}], data={"task": "none"}),
        RESNET,
        ARRAYS,
        "/steps/0/loss",
        "The loss 'both' needs a task and `data.task` is `none`: name the task, or use `distill`.",
    ),
    "a task without labels": (
        spec(data={"task": "regression"}),
        RESNET,
        UNLABELLED,
        "/data/task",
        "The task 'regression' needs labels and the data has none: use `none`, or send the labels as `y`.",
    ),
    "classification of fractions": (
        spec(data={"task": "classification"}),
        RESNET,
        with_labels(dtype="float32", classes=None, minimum=-1.5, maximum=2.0),
        "/data/task",
        "The task 'classification' takes one whole number a sample, counted from 0; the labels are float32 ['N'] "
        "from -1.5 to 2. They suggest 'regression'.",
    ),
    "classes below zero": (
        spec(data={}),
        RESNET,
        with_labels(minimum=-1),
        "/data/task",
        "takes one whole number a sample, counted from 0; the labels are int64 ['N'] from -1 to 9",
    ),
    "multilabel of class numbers": (
        spec(data={"task": "multilabel"}),
        RESNET,
        ARRAYS,
        "/data/task",
        "The task 'multilabel' takes a row of zeros and ones for each sample",
    ),
    "segmentation of class numbers": (
        spec(data={"task": "segmentation"}),
        RESNET,
        ARRAYS,
        "/data/task",
        "takes a map [height, width] of whole numbers, counted from 0, for each sample",
    ),
    "one class only": (
        spec(data={}),
        RESNET,
        with_labels(classes=1, minimum=3, maximum=3),
        "/data/task",
        "Every label is 3: with one class nothing can be learnt or measured. Send samples of every class, or use "
        "`none`.",
    ),
    "a metric of another task": (
        spec(data={"metric": "mean_iou"}),
        RESNET,
        ARRAYS,
        "/data/metric",
        "The metric 'mean_iou' cannot be computed for the task 'classification': choose from accuracy, top5_accuracy, "
        "macro_f1, agreement.",
    ),
    "a metric without labels": (
        spec(data={"metric": "accuracy"}),
        RESNET,
        UNLABELLED,
        "/data/metric",
        "The metric 'accuracy' cannot be computed for data without labels: choose from agreement.",
    ),
    "arrays of other names": (
        spec(data={}),
        TOKENS,
        with_inputs(tensor("tokens", "int64", 16)),
        "/data/dataset",
        "The network takes 'input_ids' int64 [N, 16], 'mask' int64 [N, 16]; the data has 'tokens' int64 [N, 16]. "
        "Name the arrays after the inputs, or `x0`, `x1`, … in call order.",
    ),
    "channels last": (
        spec(data={}),
        RESNET,
        with_inputs(tensor("x", "uint8", 32, 32, 3)),
        "/data/dataset",
        "The data does not fit the network's inputs: input 'x' float32 [N, 3, 32, 32], array 'x' uint8 [N, 32, 32, 3] "
        "<- differs (put the channels first: `np.moveaxis(x, -1, 1)`).",
    ),
    "fractions for whole numbers": (
        spec(data={}),
        TOKENS,
        with_inputs(tensor("input_ids", "float32", 16), tensor("mask", "int64", 16)),
        "/data/dataset",
        "input 'input_ids' int64 [N, 16], array 'input_ids' float32 [N, 16] <- differs; input 'mask'",
    ),
    "images for tokens": (
        spec(data={}),
        TOKENS,
        IMAGES,
        "/data/dataset",
        "Images feed one floating-point input [N, 1 or 3, height, width]; the network takes 'input_ids' int64 [N, 16], "
        "'mask' int64 [N, 16]. Send the data as `.npz`.",
    ),
    "resizing arrays": (
        spec(data={"transform": {"resize": 32}}),
        RESNET,
        ARRAYS,
        "/data/transform/resize",
        "`resize` is for image files; arrays must have the network's size already. Leave it out.",
    ),
    "cropping arrays": (
        spec(data={"transform": {"crop": 32}}),
        RESNET,
        ARRAYS,
        "/data/transform/crop",
        "`crop` is for image files",
    ),
    "images of another size": (
        spec(data={}),
        RESNET,
        with_sizes((48, 48), (64, 64)),
        "/data/transform/crop",
        "The images are 48 x 64 pixels, and the network takes 32 x 32 (height x width). Set `resize` and `crop`.",
    ),
    "images of another shape": (
        spec(data={"transform": {"resize": 32}}),
        RESNET,
        with_sizes((48, 48), (64, 64)),
        "/data/transform/crop",
        "The images are 32 x 42 pixels after `resize`, and the network takes 32 x 32 (height x width).",
    ),
    "images of several sizes": (
        spec(data={}),
        RESNET,
        with_sizes((32, 48), (32, 64)),
        "/data/transform/crop",
        "The images have heights of 32 to 48 and widths of 32 to 64 pixels; the network takes 32 x 32. Set `resize`",
    ),
    "images smaller than the crop": (
        spec(data={"transform": {"crop": 32}}),
        RESNET,
        with_sizes((24, 48), (32, 64)),
        "/data/transform/crop",
        "The smallest image has a side of 24 pixels, less than `crop` 32. Set `resize` too.",
    ),
    "a crop of another size": (
        spec(data={"transform": {"crop": 28}}),
        RESNET,
        IMAGES,
        "/data/transform/crop",
        "`crop` gives 28 x 28 pixels and the network takes 32 x 32.",
    ),
    "a resize below the crop": (
        spec(data={"transform": {"crop": 32, "resize": 30}}),
        RESNET,
        IMAGES,
        "/data/transform/resize",
        "`resize` to 30 is smaller than `crop` 32: make it at least as large.",
    ),
    "a mean of other length": (
        spec(data={"transform": {"mean": [0.5, 0.5]}}),
        RESNET,
        ARRAYS,
        "/data/transform/mean",
        "`mean` has 2 numbers and the input 'x' has 3 channels: give one number, or one for each channel.",
    ),
    "a scale for tokens": (
        spec(data={"transform": {"scale": 0.5}}),
        TOKENS,
        with_inputs(tensor("input_ids", "int64", 16), tensor("mask", "int64", 16)),
        "/data/transform/scale",
        "`scale` is for floating-point inputs and this network has none. Leave it out.",
    ),
    "an unknown output": (
        spec(data={"output": "logit"}),
        RESNET,
        ARRAYS,
        "/data/output",
        "The network has no output 'logit'; it has logits, features.",
    ),
    "more classes than outputs": (
        spec(data={}),
        RESNET,
        with_labels(maximum=99, classes=100),
        "/data/dataset",
        "The labels have classes up to number 99 and the output is 'logits' float32 [N, 10], for 10. Send the labels "
        "it was trained on, or name another output in `data.output`.",
    ),
    "more classes than one score tells apart": (
        spec(data={}),
        RESNET.model_copy(update={"outputs": [tensor("best", "int64", None)]}),
        ARRAYS,
        "/data/dataset",
        "The labels have classes up to number 9 and the output is 'best' int64 [N], for one yes or no.",
    ),
    "more classes than a map of one score tells apart": (
        spec(data={}),
        RESNET.model_copy(update={"outputs": [tensor("mask", "float32", None, 32, 32)]}),
        with_labels(shape=[32, 32]),
        "/data/dataset",
        "for one yes or no.",
    ),
    "top five of four classes": (
        spec(data={"metric": "top5_accuracy"}),
        RESNET.model_copy(update={"outputs": [tensor("logits", "float32", None, 4)]}),
        with_labels(maximum=3, classes=4),
        "/data/metric",
        "Among 4 classes the right one is always in the first five: use `accuracy`.",
    ),
    "learning from labels through whole numbers": (
        spec([FINETUNE], data={}),
        RESNET.model_copy(update={"outputs": [tensor("best", "int64", None)]}),
        with_labels(maximum=1, classes=2),
        "/steps/0/loss",
        "The output 'best' is int64, so no gradient leads from the labels to the weights: name the output with the "
        "scores in `data.output`, or use the loss `distill`.",
    ),
    "weights that are not numbers": (
        spec(),
        RESNET.model_copy(
            update={"warnings": [Notice(code="nonfinite_weights", message="1 parameters hold NaN or infinity: a.")]}
        ),
        NO_DATA,
        "/model",
        "1 parameters hold NaN or infinity: a. Nothing can be compared with such a network: send one with finite",
    ),
    "another number of labels a sample": (
        spec(data={}),
        RESNET,
        with_labels(shape=[12], maximum=1, classes=2),
        "/data/dataset",
        "The labels have a column for each of 12 labels and the output is 'logits' float32 [N, 10], for 10.",
    ),
    "targets of another shape": (
        spec(data={}),
        RESNET,
        with_labels(dtype="float32", shape=[4], classes=None),
        "/data/dataset",
        "The labels have shape ['N', 4] and the output is 'logits' float32 [N, 10].",
    ),
    "a glob that matches nothing": (
        spec([{**PRUNE, "layers": [{"match": "fc", "skip": True}, {"match": "layer1.0.conv3", "skip": True}]}]),
        RESNET,
        NO_DATA,
        "/steps/0/layers/1/match",
        "No layer's name matches 'layer1.0.conv3'; the nearest are layer1.0.conv2, layer1.0.conv1",
    ),
    "every group skipped": (
        spec([{**PRUNE, "layers": [{"match": "*conv1", "skip": True}]}]),
        RESNET,
        NO_DATA,
        "/steps/0/layers",
        "Every group of channels has a layer that is skipped, so nothing would be removed: skip fewer.",
    ),
    "every layer skipped": (
        spec([{**QUANTIZE, "layers": [{"match": "*", "skip": True}]}], data={}),
        RESNET,
        ARRAYS,
        "/steps/0/layers",
        "Every layer is skipped, so nothing would be quantized: skip fewer.",
    ),
    "gradients without data": (
        spec([{**PRUNE, "criterion": "taylor"}]),
        RESNET,
        NO_DATA,
        "/steps/0/criterion",
        "The criterion 'taylor' needs data to take gradients from; labels are not needed. Upload some "
        '(`POST /datasets`) and give `"data": {"dataset": "dat_…"}`, or use a criterion that reads weights alone, such '
        "as `l2`.",
    ),
    "gradients of a network that gives whole numbers": (
        spec([{**PRUNE, "criterion": "fisher"}], data={"task": "none"}),
        DECIDED,
        UNLABELLED,
        "/steps/0/criterion",
        "No output of the network is floating-point, so the criterion 'fisher' has no gradient to go by: export the "
        "network without the argmax at its end, or use a criterion",
    ),
    "the task's gradients without labels": (
        spec([{**PRUNE, "criterion": "taylor", "loss": "task"}], data={}),
        RESNET,
        UNLABELLED,
        "/steps/0/loss",
        "Gradients of the loss 'task' need labels, a task and an output of scores that are floating-point; this data "
        "and network do not have them all: use 'distill'.",
    ),
    "a loss that nothing differentiates": (
        spec([{**PRUNE, "criterion": "l1", "loss": "distill"}], data={}),
        RESNET,
        UNLABELLED,
        "/steps/0/loss",
        "The criterion 'l1' reads no gradients, so no loss is differentiated: leave `loss` out.",
    ),
    "samples that nothing reads": (
        spec([{**PRUNE, "criterion": "l1", "samples": 64}], data={}),
        RESNET,
        UNLABELLED,
        "/steps/0/samples",
        "The criterion 'l1' reads no gradients, so no samples are taken: leave `samples` out.",
    ),
    "batch norm's scales where there is none": (
        spec([{**PRUNE, "criterion": "bn_gamma"}]),
        RESNET,
        NO_DATA,
        "/steps/0/criterion",
        "The criterion 'bn_gamma' ranks channels by the scale of their BatchNorm, and no group that may shrink has one",
    ),
    "batch norm's scales in every layer where one has none": (
        spec([{**PRUNE, "criterion": "bn_gamma", "scope": "layer"}]),
        NORMALISED,
        NO_DATA,
        "/steps/0/criterion",
        'and these groups have none: g1. Skip their layers, use `"scope": "global"`, which leaves them alone, or',
    ),
    "nothing to prune": (
        spec(),
        FROZEN,
        NO_DATA,
        "/steps/0",
        "No channels of this network can be removed: fc makes an output of the network.",
    ),
    "rounding to more than there is": (
        spec(),
        NARROW,
        NO_DATA,
        "/steps/0/round_to",
        "Nothing would be removed: no group has more than 6 channels, and `round_to` keeps multiples of 8. "
        "Lower `round_to`.",
    ),
    "less than one channel": (
        spec([{**PRUNE, "amount": {"channels": 0.01}}]),
        RESNET,
        NO_DATA,
        "/steps/0/amount/channels",
        "Nothing would be removed: 0.01 of 48 channels is less than one. Ask for at least 0.021.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_spec_that_cannot_work_is_refused_with_the_field_and_the_remedy(name: str) -> None:
    asked, network, dataset, pointer, message = REFUSED[name]
    problems = check(asked, network, dataset)
    for problem in problems:
        print(problem.pointer, problem.message)
    assert [problem.pointer for problem in problems] == [pointer]
    assert message in problems[0].message


@pytest.mark.parametrize(
    ("network", "dataset", "data"),
    [
        (RESNET, ARRAYS, {}),
        (RESNET, UNLABELLED, {}),
        (RESNET, IMAGES, {"transform": {"resize": 36, "crop": 32, "mean": [0.5], "std": [0.1, 0.2, 0.3]}}),
        (RESNET, with_sizes((32, 32), (32, 32)), {}),
        (RESNET, with_sizes((64, 64), (64, 64)), {"transform": {"resize": 32}}),
        (RESNET, with_sizes((20, 48), (30, 64)), {"transform": {"resize": 32, "crop": 32}}),
        (RESNET, with_sizes((32, 48), (40, 64)), {"transform": {"crop": 32}}),
        (RESNET, with_labels(shape=[10], maximum=1, classes=2), {"metric": "micro_f1"}),
        (RESNET, with_labels(dtype="float32", shape=[10], classes=None), {"metric": "rmse"}),
        (RESNET, with_labels(maximum=40, classes=41), {"output": "features"}),
        (TOKENS, with_inputs(tensor("x0", "int32", 16), tensor("x1", "bool", 16)), {}),
    ],
)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_suits_a_network_whose_data_fits(
    preset: str, network: NetworkInspection, dataset: DatasetInspection, data: dict[str, Any]
) -> None:
    assert check(spec(preset=preset, data=data), network, dataset) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_resolves_to_its_steps_and_stays_the_same_over_json(preset: str) -> None:
    resolved = resolve(spec(preset=preset, data={}), RESNET, ARRAYS)
    assert resolved.preset is None
    assert resolved.steps is not None
    assert [step.step for step in resolved.steps] == [step.step for step in PRESETS[preset].steps]
    assert Spec.model_validate_json(resolved.model_dump_json()) == resolved
    assert check(resolved, RESNET, ARRAYS) == []
    assert resolve(resolved, RESNET, ARRAYS) == resolved


@pytest.mark.parametrize(
    ("dataset", "task", "metric", "loss", "scale"),
    [
        (ARRAYS, "classification", "accuracy", "both", 1 / 255),
        (IMAGES, "classification", "accuracy", "both", 1 / 255),
        (UNLABELLED, "none", "agreement", "distill", 1 / 255),
        (with_inputs(tensor("x", "float32", 3, 32, 32)), "classification", "accuracy", "both", 1.0),
        (with_labels(dtype="float64", shape=[10], classes=None), "regression", "mae", "both", 1 / 255),
    ],
)
def test_defaults_follow_the_data(dataset: DatasetInspection, task: Task, metric: str, loss: str, scale: float) -> None:
    resolved = resolve(spec(preset="half", data={}), RESNET, dataset)
    assert resolved.data is not None
    assert resolved.steps is not None
    assert (resolved.data.task, resolved.data.metric, resolved.data.output) == (task, metric, "logits")
    assert resolved.data.transform.scale == scale
    assert resolved.steps[1].model_dump()["loss"] == loss


def test_what_was_asked_for_is_not_replaced_by_defaults() -> None:
    asked = spec(
        [{**FINETUNE, "loss": "distill"}],
        data={"task": "none", "output": "features", "transform": {"scale": 1.0}},
    )
    assert resolve(asked, RESNET, ARRAYS) == asked.model_copy(
        update={
            "data": asked.data and asked.data.model_copy(update={"metric": "agreement"}),
            "export": ["onnx", "pt2"],
        }
    )


@pytest.mark.parametrize("step", [PRUNE, {"step": "sparsify", "amount": 0.5}, {"step": "sensitivity"}])
@pytest.mark.parametrize(("criterion", "samples"), [("taylor", 512), ("l1", None)])
def test_samples_are_counted_where_gradients_are_read(
    step: dict[str, Any], criterion: str, samples: int | None
) -> None:
    resolved = resolve(spec([{**step, "criterion": criterion}], data={}), RESNET, ARRAYS)
    assert resolved.steps is not None
    assert resolved.steps[0].model_dump()["samples"] == samples
    assert check(resolved, RESNET, ARRAYS) == []


def test_no_data_resolves_to_no_data() -> None:
    assert resolve(spec(), RESNET, None).data is None


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_batch_norms_scales_rank_the_groups_that_have_one(scope: str) -> None:
    skipped = [] if scope == "global" else [{"match": "layer1.0.conv1", "skip": True}]
    step = {**PRUNE, "criterion": "bn_gamma", "scope": scope, "layers": skipped}
    assert check(spec([step]), NORMALISED, None) == []


@pytest.mark.parametrize("criterion", CRITERIA)
def test_how_scores_are_normalized_is_filled_in_by_criterion(criterion: UnitCriterion) -> None:
    asked = spec([{**PRUNE, "criterion": criterion}, {**PRUNE, "criterion": criterion, "normalize": "standard"}])
    steps = resolve(asked, RESNET, None).steps
    assert steps is not None
    assert [step.model_dump()["normalize"] for step in steps] == [CRITERIA[criterion].normalize, "standard"]


@pytest.mark.parametrize(
    ("criterion", "dataset", "asked", "loss"),
    [
        ("taylor", ARRAYS, None, "task"),
        ("taylor", UNLABELLED, None, "distill"),
        ("taylor", ARRAYS, "distill", "distill"),
        ("l2", ARRAYS, None, None),
    ],
)
def test_what_is_differentiated_follows_the_data(
    criterion: UnitCriterion, dataset: DatasetInspection, asked: str | None, loss: str | None
) -> None:
    wanted = spec([{**PRUNE, "criterion": criterion, "loss": asked}], data={})
    assert check(wanted, RESNET, dataset) == []
    (step,) = resolve(wanted, RESNET, dataset).steps or []
    assert step.model_dump()["loss"] == loss
