"""Metrics against their definitions, written out the long way; agreement; what counts as chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.metrics import METRICS, default_task, metrics_of
from models.spec import Data, Metric, Task
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.meters import Meter, meter_for
from worker.engine.measure.metrics import (
    agreement,
    as_outputs,
    at_chance,
    drop,
    evaluate,
    evaluate_agreement,
    forward_of,
    output_index,
)
from worker.engine.measure.scores import Values

INPUT = TensorInfo(name="x", dtype="float32", shape=[None, 4])


def measured(task: Task, outputs: Values, labels: Tensor, batch: int = 7) -> dict[Metric, float]:
    meter = meter_for(task)
    for start in range(0, len(labels), batch):
        meter.add(outputs[start : start + batch], labels[start : start + batch])
    assert meter.count == len(labels)
    return meter.values()


def f1_of(predicted: list[int], labels: list[int], one: int) -> float:
    hits = sum(p == one and y == one for p, y in zip(predicted, labels, strict=True))
    return 2 * hits / (predicted.count(one) + labels.count(one))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def test_classification_metrics_are_their_definitions() -> None:
    scores, labels = random(100, 8), whole(7, 100)
    scores[torch.arange(100), labels] += 1.5
    predicted, truth = scores.argmax(1).tolist(), labels.tolist()
    values = measured("classification", scores, labels)
    assert values["accuracy"] == sum(p == y for p, y in zip(predicted, truth, strict=True)) / 100
    in_top5 = sum(y in row[:5] for y, row in zip(truth, scores.argsort(1, descending=True).tolist(), strict=True))
    assert values["top5_accuracy"] == in_top5 / 100
    occurring = sorted({*predicted, *truth})
    assert values["macro_f1"] == pytest.approx(sum(f1_of(predicted, truth, c) for c in occurring) / len(occurring))


def test_five_classes_have_no_top5() -> None:
    assert set(measured("classification", random(20, 5), whole(5, 20))) == {"accuracy", "macro_f1"}


@pytest.mark.parametrize("shape", [(50, 3, 1, 1), (50, 3)])
@pytest.mark.parametrize("as_numpy", [True, False])
def test_scores_of_any_runtime_and_with_trailing_ones_count_the_same(shape: tuple[int, ...], as_numpy: bool) -> None:
    scores, labels = random(50, 3), whole(3, 50)
    given: Any = scores.reshape(shape).numpy() if as_numpy else scores.reshape(shape)
    assert measured("classification", given, labels) == measured("classification", scores, labels)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(60, 1), (60,)])
def test_one_score_for_two_classes_is_cut_at_even_odds(probabilities: bool, shape: tuple[int, ...]) -> None:
    logits, labels = random(60), whole(2, 60)
    scores = logits.sigmoid() if probabilities else logits
    values = measured("classification", scores.reshape(shape), labels)
    two_columns = torch.stack([torch.zeros(60), logits], dim=1)
    assert values == pytest.approx(measured("classification", two_columns, labels))


@pytest.mark.parametrize("probabilities", [False, True])
def test_micro_f1_is_its_definition(probabilities: bool) -> None:
    logits, labels = random(40, 5), whole(2, 40, 5)
    predicted = (logits > 0).int().flatten().tolist()
    values = measured("multilabel", logits.sigmoid() if probabilities else logits, labels.float())
    assert values == {"micro_f1": pytest.approx(f1_of(predicted, labels.flatten().tolist(), 1))}


def test_regression_errors_are_their_definitions() -> None:
    outputs, labels = random(30, 1), random(30, seed=1)
    errors = [a - b for a, b in zip(outputs[:, 0].tolist(), labels.tolist(), strict=True)]
    values = measured("regression", outputs, labels)
    assert values["mae"] == pytest.approx(sum(abs(e) for e in errors) / 30)
    assert values["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 30))


def test_segmentation_metrics_are_their_definitions() -> None:
    scores, labels = random(9, 4, 5, 6), whole(3, 9, 5, 6)
    labels[:, 0, 0] = IGNORE_INDEX
    pairs = [
        (p, y)
        for p, y in zip(scores.argmax(1).flatten().tolist(), labels.flatten().tolist(), strict=True)
        if y != IGNORE_INDEX
    ]
    ious = [
        sum(p == c and y == c for p, y in pairs) / sum(c in (p, y) for p, y in pairs)
        for c in {value for pair in pairs for value in pair}
    ]
    values = measured("segmentation", scores, labels)
    assert values["mean_iou"] == pytest.approx(sum(ious) / len(ious))
    assert values["pixel_accuracy"] == pytest.approx(sum(p == y for p, y in pairs) / len(pairs))


@pytest.mark.parametrize("shape", [(9, 1, 5, 6), (9, 5, 6)])
def test_a_mask_of_one_channel_is_two_classes(shape: tuple[int, ...]) -> None:
    logits, labels = random(9, 5, 6), whole(2, 9, 5, 6)
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    one = measured("segmentation", logits.reshape(shape), labels)
    assert one == pytest.approx(measured("segmentation", two, labels))


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("classification", random(4, 3, 2, 2), whole(3, 4)),
        ("multilabel", random(4, 3), whole(2, 4, 5).float()),
        ("regression", random(4, 3), random(4, 2)),
        ("segmentation", random(4, 3, 5, 5), whole(3, 4, 10, 10)),
        ("segmentation", random(4, 3), whole(3, 4, 10, 10)),
    ],
)
def test_an_output_of_another_shape_is_a_mismatch(task: Task, outputs: Tensor, labels: Tensor) -> None:
    with pytest.raises(Failure, match="the network's output is") as caught:
        measured(task, outputs, labels)
    assert caught.value.code is Code.DATASET_MISMATCH


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("classification", random(4, 3), torch.arange(4)),
        ("segmentation", random(1, 3, 2, 2), torch.arange(4).reshape(1, 2, 2)),
    ],
)
def test_a_label_beyond_the_output_is_a_mismatch(task: Task, outputs: Tensor, labels: Tensor) -> None:
    with pytest.raises(Failure, match="A label is 3 and the network's output has 3 classes"):
        measured(task, outputs, labels)


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("classification", torch.arange(4), torch.arange(4)),
        ("classification", random(4, 1), torch.arange(4)),
        ("segmentation", random(1, 2, 2), torch.arange(4).reshape(1, 2, 2)),
    ],
)
def test_one_score_is_never_held_against_more_than_two_classes(task: Task, outputs: Tensor, labels: Tensor) -> None:
    with pytest.raises(Failure, match="A label is 3 and the network's output has 2 classes"):
        measured(task, outputs, labels)


def test_agreement_is_the_share_of_equal_answers() -> None:
    a = torch.tensor([[3.0, 1.0], [0.0, 1.0], [5.0, 4.0], [1.0, 2.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 9.0], [4.0, 5.0], [1.0, 2.0]])
    assert agreement([a[:3], a[3:]], [b[:3], b[3:]], "classification") == 0.75
    assert agreement([a.numpy()], [b.numpy()], "classification") == 0.75
    assert agreement([a - 1.5], [b - 1.5], "multilabel") == 6 / 8
    maps, others = whole(2, 2, 3, 4, 4).float(), whole(2, 2, 3, 4, 4, seed=1).float()
    same = (maps.argmax(1) == others.argmax(1)).float().mean().item()
    assert agreement([maps], [others], "segmentation") == pytest.approx(same)


@pytest.mark.parametrize("task", ["regression", "none"])
def test_agreement_of_numbers_falls_with_their_relative_distance(task: Task) -> None:
    a = random(10, 3)
    assert agreement([a], [a], task) == 1.0
    assert agreement([a], [a * 1.1], task) == pytest.approx(0.9)
    assert agreement([a], [a * 5], task) == 0.0
    assert agreement([a * 0], [a * 0], task) == 1.0


def test_agreement_of_one_score_is_of_the_decision() -> None:
    meter = AgreementMeter("classification")
    meter.add(torch.tensor([0.2, 0.7, 0.9, 0.1]), torch.tensor([0.1, 0.8, 0.4, 0.3]))
    assert meter.value() == 0.75


class Scorer(nn.Module):
    """The first output is noise of another shape, the second the input itself."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"other": x.sum(1), "scores": [x]}


def data_of(folder: Path, x: Any, y: Any, **data: Any) -> Dataset:
    np.savez(folder / "data.npz", x=np.asarray(x, dtype=np.float32), y=np.asarray(y))
    inputs = (TensorInfo(name="x", dtype="float32", shape=[None, *np.shape(x)[1:]]),)
    return open_dataset(folder / "data.npz", Data(dataset="d", **data), inputs, seed=0)


def test_a_network_is_evaluated_on_every_sample_of_a_split(tmp_path: Path) -> None:
    labels = whole(4, 150)
    x = random(150, 4)
    dataset = data_of(tmp_path, x, labels)
    values = evaluate(forward_of(Scorer()), dataset.train, "classification", output=1, batch_size=11)
    rows = torch.from_numpy(dataset.train.rows)
    expected = (x[rows].argmax(1) == labels[rows]).float().mean().item()
    assert values["accuracy"].value == pytest.approx(expected)
    assert (values["accuracy"].n, values["accuracy"].split) == (len(dataset.train), "train")


def test_a_network_agrees_with_itself(tmp_path: Path) -> None:
    dataset = data_of(tmp_path, random(50, 4), whole(4, 50))
    forward = forward_of(Scorer())
    value = evaluate_agreement(forward, forward, dataset.val, "classification", output=1)
    assert value is not None
    assert (value.value, value.n, value.split) == (1.0, 5, "val")


def test_without_labels_there_are_no_metrics(tmp_path: Path) -> None:
    dataset = data_of(tmp_path, random(50, 4), whole(4, 50), task="none")
    assert evaluate(forward_of(Scorer()), dataset.val, "none") == {}


def test_outputs_that_are_not_finite_fail(tmp_path: Path) -> None:
    dataset = data_of(tmp_path, random(50, 4), random(50))
    with pytest.raises(Failure) as caught:
        evaluate(lambda inputs: inputs[0][:, 0] * math.nan, dataset.val, "regression")
    assert caught.value.code is Code.NAN_LOSS


def test_a_token_outside_of_the_embedding_is_a_mismatch() -> None:
    forward = forward_of(nn.Embedding(10, 2))
    forward((torch.tensor([9]),))
    with pytest.raises(Failure, match="embedding") as caught:
        forward((torch.tensor([10]),))
    assert caught.value.code is Code.DATASET_MISMATCH


def test_outputs_are_taken_in_order_from_any_nesting() -> None:
    assert as_outputs(1) == (1,)
    assert as_outputs({"a": [1, (2, 3)], "b": 4}) == (1, 2, 3, 4)


def test_the_output_that_counts_is_the_named_one_or_the_first() -> None:
    outputs = (TensorInfo(name="a", dtype="float32", shape=[]), TensorInfo(name="b", dtype="float32", shape=[]))
    assert (output_index(outputs, None), output_index(outputs, "b")) == (0, 1)
    with pytest.raises(Failure, match="it has a, b"):
        output_index(outputs, "c")


def test_a_guess_is_at_chance_and_a_good_answer_is_not(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2, 3, 4, 5, 6, 7], [600, 200, 50, 50, 50, 20, 20, 10])
    dataset = data_of(tmp_path, np.zeros((1000, 4)), labels)
    assert at_chance("accuracy", 0.6, dataset)
    assert at_chance("accuracy", 0.01, dataset)
    assert not at_chance("accuracy", 0.75, dataset)
    assert at_chance("top5_accuracy", 0.95, dataset)
    assert not at_chance("top5_accuracy", 1.0, dataset)
    assert at_chance("macro_f1", 0.12, dataset)
    assert not at_chance("macro_f1", 0.5, dataset)
    assert not at_chance("agreement", 0.0, dataset)


def test_errors_no_smaller_than_a_constant_answers_are_at_chance(tmp_path: Path) -> None:
    labels = np.arange(1000) / 100
    dataset = data_of(tmp_path, np.zeros((1000, 4)), labels)
    truth = dataset.val.labels()
    assert truth is not None
    assert at_chance("rmse", float(truth.std(correction=0)), dataset)
    assert not at_chance("rmse", 0.7 * float(truth.std(correction=0)), dataset)
    constant = float((truth - truth.median()).abs().mean())
    assert at_chance("mae", constant, dataset)
    assert not at_chance("mae", 0.7 * constant, dataset)


@pytest.mark.parametrize(("metric", "value"), [("mae", 0.0), ("accuracy", 0.0)])
def test_a_handful_of_samples_says_nothing_about_chance(tmp_path: Path, metric: Metric, value: float) -> None:
    labels = np.arange(8) / 8 if metric == "mae" else np.arange(8) % 2
    assert not at_chance(metric, value, data_of(tmp_path, np.zeros((8, 4)), labels))


def test_labels_of_rows_and_maps_have_a_chance_level_too(tmp_path: Path) -> None:
    rows = data_of(tmp_path, np.zeros((400, 4)), np.arange(1200).reshape(400, 3) % 2)
    assert at_chance("micro_f1", 0.6, rows)
    assert not at_chance("micro_f1", 0.95, rows)
    maps = data_of(tmp_path, np.zeros((400, 4)), np.arange(400 * 6).reshape(400, 2, 3) % 3)
    assert at_chance("pixel_accuracy", 0.33, maps)
    assert not at_chance("pixel_accuracy", 0.9, maps)
    assert at_chance("mean_iou", 0.2, maps)


def test_directions() -> None:
    assert drop("accuracy", before=0.8, after=0.9) < 0
    assert drop("mae", before=0.9, after=0.8) < 0
    assert drop("accuracy", before=0.9, after=0.8) == pytest.approx(0.1)
    assert drop("rmse", before=0.9, after=0.8) == pytest.approx(-0.1)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "segmentation"])
def test_meters_give_the_metrics_of_their_task(task: Task) -> None:
    outputs: dict[Task, tuple[Tensor, Tensor]] = {
        "classification": (random(8, 7), whole(7, 8)),
        "multilabel": (random(8, 7), whole(2, 8, 7).float()),
        "regression": (random(8, 7), random(8, 7)),
        "segmentation": (random(8, 3, 4, 4), whole(3, 8, 4, 4)),
    }
    meter: Meter = meter_for(task)
    meter.add(*outputs[task])
    assert (*meter.values(), "agreement") == metrics_of(task)
    assert set(meter.values()) <= set(METRICS)


def test_no_labels_suggest_no_task() -> None:
    assert default_task(None) == "none"
