"""Which metrics each task has, which direction is better, and which task labels suggest. No arithmetic here."""

from __future__ import annotations

from dataclasses import dataclass

from models.inspection import LabelInfo
from models.spec import Metric, Task


@dataclass(frozen=True)
class MetricKind:
    """`tasks` that have this metric; an empty set means every task."""

    higher_is_better: bool
    tasks: frozenset[Task]


METRICS: dict[Metric, MetricKind] = {
    "perplexity": MetricKind(False, frozenset({"causal_lm"})),
    "accuracy": MetricKind(True, frozenset({"classification", "tagging", "causal_lm"})),
    "top5_accuracy": MetricKind(True, frozenset({"classification"})),
    "macro_f1": MetricKind(True, frozenset({"classification", "tagging"})),
    "micro_f1": MetricKind(True, frozenset({"multilabel"})),
    "mae": MetricKind(False, frozenset({"regression"})),
    "rmse": MetricKind(False, frozenset({"regression"})),
    "mean_iou": MetricKind(True, frozenset({"segmentation"})),
    "pixel_accuracy": MetricKind(True, frozenset({"segmentation"})),
    "recall_at_1": MetricKind(True, frozenset({"embedding"})),
    "agreement": MetricKind(True, frozenset()),
}


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The metrics a task may be judged by, the default first. Without labels only `agreement` is left."""
    own: tuple[Metric, ...] = tuple(name for name, kind in METRICS.items() if task in kind.tasks)
    return (*own, "agreement")


def default_task(labels: LabelInfo | None) -> Task:
    """What labels suggest: whole numbers, one a sample: classification; a row of zeros and ones: multilabel, of others:
    tagging; a map: segmentation.

    Floating-point labels: regression. No labels: none. `labels.shape` is one sample's.
    """
    if labels is None:
        return "none"
    if labels.dtype.startswith("float"):
        return "regression"
    if labels.shape in ([], [1]):
        return "classification"
    if len(labels.shape) != 1:
        return "segmentation"
    return "multilabel" if (labels.minimum or 0) >= 0 and (labels.maximum or 0) <= 1 else "tagging"
