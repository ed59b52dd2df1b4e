"""Metrics of a network on a split, by the same arithmetic whatever runs the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.metrics import METRICS
from models.report import MetricValue
from models.spec import Metric, Task
from worker.engine.data.dataset import Dataset, Split
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.meters import meter_for
from worker.engine.measure.retrieval import chance_of_recall
from worker.engine.measure.scores import Values

Forward = Callable[[tuple[Tensor, ...]], Any]
"""Inputs in call order to outputs: a tensor or array, or a sequence or mapping of them."""
BATCH_SIZE = 64
STANDARD_ERRORS = 2.0
FEWEST_TO_JUDGE = 10
"""On fewer samples chance and skill look alike: nothing is said."""


def as_outputs(value: Any) -> tuple[Any, ...]:
    """What a network returned, as a flat tuple in order."""
    if isinstance(value, Mapping):
        return tuple(output for item in value.values() for output in as_outputs(item))
    if isinstance(value, (tuple, list)):
        return tuple(output for item in value for output in as_outputs(item))
    return (value,)


def output_index(outputs: tuple[TensorInfo, ...], name: str | None) -> int:
    """The position of the output that counts: the one named, else the first. Raises Failure(INVALID_SPEC)."""
    names = [output.name for output in outputs]
    if name is None:
        return 0
    if name not in names:
        raise Failure(
            Code.INVALID_SPEC, f"The network has no output {name!r}; it has {', '.join(names)}.", where="/data/output"
        )
    return names.index(name)


def forward_of(network: nn.Module, device: torch.device | None = None) -> Forward:
    """`network` in eval mode without gradients, on `device`.

    Calling it raises Failure(DATASET_MISMATCH) when an integer input points outside of an embedding.
    """

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        network.eval()
        with torch.no_grad():
            placed = tuple(value.to(device) for value in inputs)
            try:
                return as_outputs(network(*placed))
            except IndexError as error:
                raise index_outside(error) from error

    return forward


def index_outside(error: IndexError) -> Failure:
    """The only IndexError a network that ran before can raise: an integer input beyond its embedding."""
    return Failure(
        Code.DATASET_MISMATCH,
        f"An integer input holds an index that the network's embedding does not have ({error}); "
        "send the token numbers it was trained on.",
    )


def evaluate(
    forward: Forward, split: Split, task: Task, *, output: int = 0, batch_size: int = BATCH_SIZE
) -> dict[str, MetricValue]:
    """Every metric of the task on all samples of a split; empty without labels or samples.

    Raises Failure: DATASET_MISMATCH when outputs do not fit the labels, NAN_LOSS when outputs are not finite.
    """
    if split.label_reader is None or not len(split):
        return {}
    meter = meter_for(task)
    for batch in split.batches(batch_size):
        outputs = as_outputs(forward(batch.inputs))[output]
        meter.add(outputs, cast(Tensor, batch.labels))
    return {name: metric_value(name, value, meter.count, split) for name, value in meter.values().items()}


def evaluate_agreement(
    reference: Forward, other: Forward, split: Split, task: Task, *, output: int = 0, batch_size: int = BATCH_SIZE
) -> MetricValue | None:
    """`agreement` of two networks on all samples of a split; None without samples."""
    if not len(split):
        return None
    meter = AgreementMeter(task)
    for batch in split.batches(batch_size):
        first, second = (as_outputs(forward(batch.inputs))[output] for forward in (reference, other))
        meter.add(first, second, batch.labels)
    return metric_value("agreement", meter.value(), meter.count, split)


def agreement(reference: Sequence[Values], other: Sequence[Values], task: Task) -> float:
    """Agreement of collected batches of one output; `AgreementMeter` says what is measured for which task."""
    meter = AgreementMeter(task)
    for a, b in zip(reference, other, strict=True):
        meter.add(a, b)
    return meter.value()


def drop(metric: Metric, before: float, after: float) -> float:
    """How much worse `after` is than `before`, in the metric's own unit; negative when it is better."""
    return before - after if METRICS[metric].higher_is_better else after - before


def at_chance(metric: str, value: float, dataset: Dataset) -> bool:
    """Whether `value` on `dataset.val` is no better than an answer that ignores the input.

    The answer compared with is the best constant one (the classes by frequency, the median, the mean), or for F1 and
    IoU guessing evenly if that is better, with two standard errors (of a share, of a standard deviation) on top.
    """
    labels = dataset.val.labels()
    if labels is None or len(labels) < FEWEST_TO_JUDGE or metric == "agreement":
        return False
    name = cast(Metric, metric)
    chance = _constant_answer(name, labels, dataset)
    if not METRICS[name].higher_is_better:
        return value >= chance * (1.0 - STANDARD_ERRORS / math.sqrt(2 * len(labels)))
    if name in ("macro_f1", "mean_iou"):
        chance = max(chance, 1.0 / max(2, dataset.class_count or 2))
    margin = STANDARD_ERRORS * math.sqrt(chance * (1.0 - chance) / len(labels))
    return value <= min(chance + margin, 1.0 - 1e-9)


def metric_value(name: str, value: float, count: int, split: Split) -> MetricValue:
    """Raises Failure(NAN_LOSS) for a value that is not finite: the network's outputs are not."""
    require_finite(name, value, split)
    return MetricValue(value=value, n=count, split=split.name)


def require_finite(name: str, value: float, split: Split) -> None:
    """Raises Failure(NAN_LOSS) for a metric or loss that is NaN or infinite."""
    if not math.isfinite(value):
        raise Failure(
            Code.NAN_LOSS, f"Outputs of the network on the {split.name} data are not finite ({name}: {value})."
        )


def _constant_answer(metric: Metric, labels: Tensor, dataset: Dataset) -> float:
    meter = meter_for(dataset.task)
    if dataset.task == "regression":
        middle = labels.median(0).values if metric == "mae" else labels.mean(0)
        meter.add(middle.expand_as(labels), labels)
    elif dataset.task == "multilabel":
        meter.add(torch.ones_like(labels), labels)
    elif dataset.task == "embedding":
        return chance_of_recall(labels)
    elif dataset.task == "causal_lm":
        share = torch.bincount(labels[labels != IGNORE_INDEX]).double()
        share = share[share > 0] / share.sum()
        return float(share.max()) if metric == "accuracy" else math.exp(float(-(share * share.log()).sum()))
    else:
        named = labels[labels != IGNORE_INDEX]
        frequency = torch.bincount(named.flatten(), minlength=max(2, dataset.class_count or 2)).double()
        scores = frequency.reshape(1, -1, *[1] * (labels.ndim - 1)).expand(len(labels), -1, *labels.shape[1:])
        meter.add(scores.movedim(1, -1) if dataset.task == "tagging" else scores, labels)
    return meter.values().get(metric, 0.0)
