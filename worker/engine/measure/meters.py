"""Running tallies behind the metrics: `add(outputs, labels)` for each batch, `values()` at the end.

They take torch tensors or numpy arrays, so that outputs of any runtime are judged by the same arithmetic.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.spec import Metric, Task
from worker.engine.data.labels import IGNORE_INDEX

Values = Tensor | np.ndarray[Any, np.dtype[Any]]


class Meter(Protocol):
    """`count` is the number of samples added."""

    count: int

    def add(self, outputs: Values, labels: Tensor) -> None: ...

    def values(self) -> dict[Metric, float]: ...


def meter_for(task: Task) -> Meter:
    """An empty meter for a task with labels."""
    return METERS[task]()


class ClassificationMeter:
    """Outputs [N, K] (or [N, K, 1, 1]): scores, the largest wins; [N, 1] for two classes: see `Decisions`.

    accuracy; top5_accuracy when there are more than five classes; macro_f1, the mean of F1 over the classes that occur
    among labels or predictions (as scikit-learn does).
    """

    def __init__(self) -> None:
        self.count = 0
        self.correct = 0
        self.in_top5 = 0
        self.classes = 0
        self.per_class = torch.zeros(3, 0, dtype=torch.int64)
        self.decisions = Decisions()

    def add(self, outputs: Values, labels: Tensor) -> None:
        scores = class_scores(outputs, "classification").cpu()
        labels = labels.cpu()
        self.count += len(labels)
        self.classes = scores.shape[1]
        _check_labels(labels, self.classes)
        if self.classes == 1:
            self.decisions.add(scores[:, 0], labels)
            return
        predicted = scores.argmax(1)
        hit = predicted == labels
        self.correct += int(hit.sum())
        if self.classes > 5:
            self.in_top5 += int((scores.topk(5, dim=1).indices == labels[:, None]).any(1).sum())
        if not self.per_class.shape[1]:
            self.per_class = torch.zeros(3, self.classes, dtype=torch.int64)
        for row, values in enumerate((labels[hit], predicted, labels)):
            self.per_class[row] += torch.bincount(values, minlength=self.per_class.shape[1])

    def values(self) -> dict[Metric, float]:
        if self.classes == 1:
            true_positive, false_positive, false_negative, true_negative = self.decisions.counts()
            ones = _f1(true_positive, false_positive, false_negative)
            zeros = _f1(true_negative, false_negative, false_positive)
            present = [f1 for f1 in (ones, zeros) if f1 is not None]
            return {
                "accuracy": (true_positive + true_negative) / self.count,
                "macro_f1": sum(present) / len(present),
            }
        hit, predicted, labelled = self.per_class.double()
        occurs = predicted + labelled > 0
        result: dict[Metric, float] = {"accuracy": self.correct / self.count}
        if self.classes > 5:
            result["top5_accuracy"] = self.in_top5 / self.count
        result["macro_f1"] = float((2 * hit / (predicted + labelled))[occurs].mean())
        return result


class MultilabelMeter:
    """Outputs and labels [N, K]. micro_f1: F1 over all decisions of all labels together."""

    def __init__(self) -> None:
        self.count = 0
        self.decisions = Decisions()

    def add(self, outputs: Values, labels: Tensor) -> None:
        scores = same_shape(outputs, labels, "multilabel")
        self.count += len(labels)
        self.decisions.add(scores, labels)

    def values(self) -> dict[Metric, float]:
        true_positive, false_positive, false_negative, _ = self.decisions.counts()
        f1 = _f1(true_positive, false_positive, false_negative)
        return {"micro_f1": 1.0 if f1 is None else f1}


class RegressionMeter:
    """Outputs and labels of one shape. mae: mean absolute error; rmse: root of the mean squared error."""

    def __init__(self) -> None:
        self.count = 0
        self.numbers = 0
        self.absolute = 0.0
        self.squared = 0.0

    def add(self, outputs: Values, labels: Tensor) -> None:
        error = same_shape(outputs, labels, "regression").double() - labels.double().cpu()
        self.count += len(labels)
        self.numbers += error.numel()
        self.absolute += float(error.abs().sum())
        self.squared += float(error.square().sum())

    def values(self) -> dict[Metric, float]:
        return {"mae": self.absolute / self.numbers, "rmse": (self.squared / self.numbers) ** 0.5}


class SegmentationMeter:
    """Outputs [N, K, H, W] (or [N, 1, H, W] for two classes), labels [N, H, W]; ignored pixels do not count.

    mean_iou: intersection over union, over the classes that occur in labels or predictions; pixel_accuracy.
    """

    def __init__(self) -> None:
        self.count = 0
        self.confusion = torch.zeros(0, 0, dtype=torch.int64)
        self.decisions = Decisions()

    def add(self, outputs: Values, labels: Tensor) -> None:
        scores = pixel_scores(outputs, labels).cpu()
        labels = labels.cpu()
        self.count += len(labels)
        named = labels != IGNORE_INDEX
        _check_labels(labels, scores.shape[1])
        if scores.shape[1] == 1:
            self.decisions.add(scores[:, 0][named], labels[named])
            return
        if not len(self.confusion):
            classes = scores.shape[1]
            self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        classes = len(self.confusion)
        pairs = labels[named] * classes + scores.argmax(1)[named]
        self.confusion += torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def values(self) -> dict[Metric, float]:
        if len(self.confusion):
            confusion = self.confusion.double()
        else:
            true_positive, false_positive, false_negative, true_negative = self.decisions.counts()
            confusion = torch.tensor(
                [[true_negative, false_positive], [false_negative, true_positive]], dtype=torch.float64
            )
        hit = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - hit
        return {
            "mean_iou": float((hit / union)[union > 0].mean()),
            "pixel_accuracy": float(hit.sum() / confusion.sum()),
        }


class Decisions:
    """Yes or no from one score: above 0 for logits, above 0.5 for probabilities.

    Which of the two the network gives is read off its scores: probabilities never leave 0 to 1. Both are tallied
    until the end, when all scores were seen.
    """

    def __init__(self) -> None:
        self.tallies = torch.zeros(2, 4, dtype=torch.int64)
        self.are_probabilities = True

    def add(self, scores: Tensor, labels: Tensor) -> None:
        scores, truth = scores.cpu(), labels.cpu() > 0.5
        self.are_probabilities = self.are_probabilities and bool(((scores >= 0) & (scores <= 1)).all())
        for row, threshold in enumerate((0.0, 0.5)):
            yes = scores > threshold
            parts = (yes & truth, yes & ~truth, ~yes & truth, ~yes & ~truth)
            self.tallies[row] += torch.stack([part.sum() for part in parts])

    def counts(self) -> tuple[int, int, int, int]:
        """True positives, false positives, false negatives, true negatives."""
        a, b, c, d = self.tallies[1 if self.are_probabilities else 0].tolist()
        return a, b, c, d


class AgreementMeter:
    """How far two networks answer alike, 1 for always.

    classification and segmentation: the share of samples (pixels) with the same first class; multilabel: the share of
    equal decisions; otherwise 1 - |a - b| / |a| (Euclidean norms over everything added), not below 0.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.count = 0
        self.equal = torch.zeros(2, dtype=torch.int64)
        self.compared = 0
        self.are_probabilities = True
        self.difference = 0.0
        self.magnitude = 0.0

    def add(self, reference: Values, other: Values) -> None:
        a, b = as_tensor(reference), as_tensor(other)
        self.count += len(a)
        if self.task in ("regression", "none"):
            a, b = a.double(), b.double()
            self.difference += float((a - b).square().sum())
            self.magnitude += float(a.square().sum())
            return
        if self.task == "classification":
            a, b = class_scores(a, self.task), class_scores(b, self.task)
        if self.task == "multilabel" or a.shape[1:2] == (1,):
            self.are_probabilities = self.are_probabilities and bool(((a >= 0) & (a <= 1)).all())
            self.compared += a.numel()
            self.equal += torch.stack([((a > cut) == (b > cut)).sum() for cut in (0.0, 0.5)])
            return
        same = a.argmax(1) == b.argmax(1)
        self.compared += same.numel()
        self.equal += same.sum()

    def value(self) -> float:
        if self.task in ("regression", "none"):
            if self.magnitude == 0.0:
                return 1.0 if self.difference == 0.0 else 0.0
            return max(0.0, 1.0 - math.sqrt(self.difference / self.magnitude))
        return int(self.equal[1 if self.are_probabilities else 0]) / self.compared


METERS: dict[Task, type[Meter]] = {
    "classification": ClassificationMeter,
    "multilabel": MultilabelMeter,
    "regression": RegressionMeter,
    "segmentation": SegmentationMeter,
}


def as_tensor(values: Values) -> Tensor:
    return torch.as_tensor(values).detach().cpu()


def class_scores(outputs: Values, task: Task) -> Tensor:
    """[N, K] from [N], [N, K] or [N, K, 1, …]. Raises Failure(DATASET_MISMATCH) for any other shape."""
    scores = torch.as_tensor(outputs)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim < 2 or scores[:1, :1].numel() != 1:
        raise _mismatch(scores, task, "[N, classes]")
    return scores.flatten(1)


def same_shape(outputs: Values, labels: Tensor, task: Task) -> Tensor:
    """Outputs in the shape of the labels. Raises Failure(DATASET_MISMATCH) when their sizes differ."""
    values = torch.as_tensor(outputs)
    wanted = [size for size in labels.shape[1:] if size != 1]
    if len(values) != len(labels) or [size for size in values.shape[1:] if size != 1] != wanted:
        raise _mismatch(values, task, f"{['N', *labels.shape[1:]]} like the labels")
    return values.reshape(labels.shape).cpu()


def pixel_scores(outputs: Values, labels: Tensor) -> Tensor:
    """[N, K, H, W] that covers labels [N, H, W]. Raises Failure(DATASET_MISMATCH) otherwise."""
    scores = torch.as_tensor(outputs)
    if scores.ndim == labels.ndim:
        scores = scores[:, None]
    if scores.ndim != 4 or scores.shape[2:] != labels.shape[1:]:
        raise _mismatch(
            scores, "segmentation", f"[N, classes, {', '.join(map(str, labels.shape[1:]))}] like the labels"
        )
    return scores


def _f1(true_positive: int, false_positive: int, false_negative: int) -> float | None:
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else None


def _check_labels(labels: Tensor, channels: int) -> None:
    """One channel is one score, for two classes."""
    classes = max(2, channels)
    if int(labels.max()) >= classes:
        raise Failure(
            Code.DATASET_MISMATCH,
            f"A label is {int(labels.max())} and the network's output has {classes} classes (0 to {classes - 1}); "
            "send the labels it was trained on, or name another output in `data.output`.",
        )


def _mismatch(outputs: Tensor, task: Task, wanted: str) -> Failure:
    return Failure(
        Code.DATASET_MISMATCH,
        f"The task {task!r} takes an output {wanted}; the network's output is {['N', *outputs.shape[1:]]}. "
        "Name another output in `data.output`, or set `data.task` to what the network does.",
    )
