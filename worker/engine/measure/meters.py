"""Running tallies behind the metrics: `add(outputs, labels)` for each batch, `values()` at the end.

They take torch tensors or numpy arrays, so that outputs of any runtime are judged by the same arithmetic.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from models.errors import Code, Failure
from models.spec import Metric, Task
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.retrieval import EmbeddingMeter
from worker.engine.measure.scores import Values, check_labels, class_scores, pixel_scores, same_shape, token_scores

SMALLEST_PROBABILITY = 1e-7


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
        check_labels(labels, self.classes)
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
        check_labels(labels, scores.shape[1])
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


class TaggingMeter:
    """Outputs as `token_scores` takes them, labels [N, L]: the positions whose label counts, as so many samples.

    accuracy and macro_f1 as in classification.
    """

    def __init__(self) -> None:
        self.count = 0
        self.positions = ClassificationMeter()

    def add(self, outputs: Values, labels: Tensor) -> None:
        labels = labels.cpu()
        scores = token_scores(outputs, labels, "tagging").cpu()
        self.count += len(labels)
        named = labels != IGNORE_INDEX
        if bool(named.any()):
            self.positions.add(scores.movedim(1, -1)[named], labels[named])

    def values(self) -> dict[Metric, float]:
        require_some(self.positions.count)
        values = self.positions.values()
        return {"accuracy": values["accuracy"], "macro_f1": values["macro_f1"]}


class LanguageMeter:
    """Outputs [N, L, V]: logits or probabilities of the token that labels [N, L] name; ignored positions do not count.

    perplexity, the exponential of the mean negative log likelihood over all positions; accuracy of the next token.
    Which of the two the network gives is read off its scores: probabilities never leave 0 to 1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tokens = 0
        self.correct = 0
        self.negative_log = torch.zeros(2, dtype=torch.float64)
        self.are_probabilities = True

    def add(self, outputs: Values, labels: Tensor) -> None:
        labels = labels.cpu()
        scores = token_scores(outputs, labels, "causal_lm").movedim(1, -1).cpu()
        self.count += len(labels)
        named = labels != IGNORE_INDEX
        if not bool(named.any()):
            return
        wanted = labels[named]
        scores = scores[named].float()
        check_labels(wanted, scores.shape[1])
        self.tokens += len(wanted)
        self.correct += int((scores.argmax(1) == wanted).sum())
        self.are_probabilities = self.are_probabilities and bool(((scores >= 0) & (scores <= 1)).all())
        own = scores.gather(1, wanted[:, None])[:, 0].double()
        self.negative_log += torch.stack(
            [(scores.logsumexp(1).double() - own).sum(), -own.clamp_min(SMALLEST_PROBABILITY).log().sum()]
        )

    def values(self) -> dict[Metric, float]:
        require_some(self.tokens)
        mean = float(self.negative_log[1 if self.are_probabilities else 0]) / self.tokens
        # Beyond this no float holds the power; a network so far off is wrong, not broken.
        return {"perplexity": math.exp(min(mean, 700.0)), "accuracy": self.correct / self.tokens}


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


METERS: dict[Task, type[Meter]] = {
    "classification": ClassificationMeter,
    "multilabel": MultilabelMeter,
    "regression": RegressionMeter,
    "segmentation": SegmentationMeter,
    "tagging": TaggingMeter,
    "causal_lm": LanguageMeter,
    "embedding": EmbeddingMeter,
}


def _f1(true_positive: int, false_positive: int, false_negative: int) -> float | None:
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else None


def require_some(positions: int) -> None:
    """Raises Failure(DATASET_BAD) when nothing was there to be judged."""
    if not positions:
        raise Failure(
            Code.DATASET_BAD,
            "No position of one of the splits has a label that counts: send sequences that are not padding alone, or "
            "set `data.ignore`.",
            where="y",
        )
