"""Labels: what the stored numbers mean for a task, checked once when the data is opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import LabelInfo
from models.label_rules import DEFAULT_IGNORE, POSITION_TASKS
from models.metrics import default_task
from models.spec import Task
from worker.engine.data.npy import Array
from worker.engine.data.samples import as_tensor, blocks, check_finite
from worker.engine.data.splits import Rows

IGNORE_INDEX = -100
"""What a label that does not count becomes in a batch (the default of torch's cross entropy)."""

ONE_A_SAMPLE: tuple[Task, ...] = ("classification", "embedding")


@dataclass(frozen=True)
class Labels:
    """`read` gives int64 [N] for classification and embedding, int64 [N, H, W] for segmentation and [N, L] for tagging
    and causal_lm (`IGNORE_INDEX` where the label is `ignored`), float32 [N, K] of zeros and ones for multilabel,
    float32 [N, …] for regression."""

    task: Task
    values: Array
    class_count: int | None
    ignored: int | None = None

    @property
    def strata(self) -> Array | None:
        """An integer for each sample that splits keep in proportion."""
        return np.asarray(self.values).reshape(-1) if self.task in ONE_A_SAMPLE else None

    def read(self, rows: Rows) -> Tensor:
        labels = as_tensor(self.values[rows])
        if self.task in ONE_A_SAMPLE:
            return labels.reshape(-1).to(torch.int64)
        if self.task in DEFAULT_IGNORE:
            shape = self.values.shape[-2:] if self.task == "segmentation" else self.values.shape[1:]
            labels = labels.reshape(len(labels), *shape).to(torch.int64)
            return labels if self.ignored is None else labels.masked_fill(labels == self.ignored, IGNORE_INDEX)
        return labels.to(torch.float32)


def label_info(values: Array) -> LabelInfo:
    """The inspection's view of a label array [N, …]; scans it once. Raises Failure(DATASET_BAD) for a NaN."""
    check_finite(values, "y")
    whole = values.dtype.kind in "biu"
    distinct: set[int] = set()
    lowest, highest = float("inf"), float("-inf")
    for _, block in blocks(values):
        lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
        if whole:
            distinct.update(np.unique(block).tolist())
    return LabelInfo(
        dtype=str(values.dtype.newbyteorder("=")),
        shape=list(values.shape[1:]),
        classes=len(distinct) if whole else None,
        minimum=lowest,
        maximum=highest,
    )


def read_labels(
    values: Array | None, task: Task | None, class_names: list[str] | None, ignored: int | None = None
) -> Labels | None:
    """Labels for `task` (None: what they suggest), of which `ignored` (None: the task's own) does not count. None
    without labels.

    Raises Failure: DATASET_MISMATCH when they are not of the task's kind, DATASET_BAD when out of range or all equal.
    """
    if values is None:
        return None
    info = label_info(values)
    task = task or default_task(info)
    if task == "none":
        return Labels(task, values, None)
    whole = values.dtype.kind in "biu"
    lowest, highest = info.minimum or 0.0, info.maximum or 0.0
    if task == "classification":
        _require(whole and info.shape in ([], [1]), task, "one integer a sample", info)
        _check_classes(info, lowest)
        return Labels(task, values, len(class_names) if class_names else int(highest) + 1)
    if task == "multilabel":
        _require(len(info.shape) == 1, task, "a row of zeros and ones for each sample", info)
        if not _only_zero_and_one(values):
            raise Failure(
                Code.DATASET_BAD,
                f"Labels of the task 'multilabel' must be 0 or 1; they go from {lowest:g} to {highest:g}.",
                where="y",
            )
        return Labels(task, values, info.shape[0])
    if task == "segmentation":
        flat = len(info.shape) == 2 or (len(info.shape) == 3 and info.shape[0] == 1)
        _require(whole and flat, task, "an integer map [height, width] for each sample", info)
    if task in POSITION_TASKS:
        _require(whole and len(info.shape) == 1, task, "an integer for each position of each sample", info)
    if task in DEFAULT_IGNORE:
        ignored = DEFAULT_IGNORE[task] if ignored is None else ignored
        lowest, highest_class = _range(values, ignored)
        _check_classes(info, lowest)
        return Labels(task, values, highest_class + 1, ignored)
    if task == "embedding":
        _require(whole and info.shape in ([], [1]), task, "one integer a sample", info)
        _check_classes(info, 0)
    return Labels(task, values, None)


def _check_classes(info: LabelInfo, lowest: float) -> None:
    if lowest < 0:
        raise Failure(
            Code.DATASET_BAD, f"Classes count from 0; the lowest label is {lowest:g}. Renumber them.", where="y"
        )
    if info.classes == 1:
        raise Failure(
            Code.DATASET_BAD,
            f"Every label is {lowest:g}: with one class only nothing can be learnt or measured. Send samples of every "
            'class, or set `"task": "none"`.',
            where="y",
        )


def _require(good: bool, task: Task, wanted: str, info: LabelInfo) -> None:
    if not good:
        raise Failure(
            Code.DATASET_MISMATCH,
            f"The task {task!r} takes {wanted}; the labels `y` are {info.dtype} {['N', *info.shape]}. "
            "Set `data.task` to what the labels are.",
            where="y",
        )


def _only_zero_and_one(values: Array) -> bool:
    return all(bool(np.isin(block, (0, 1)).all()) for _, block in blocks(values))


def _range(values: Array, ignored: int) -> tuple[int, int]:
    """The lowest and the highest class. Raises Failure(DATASET_BAD) where no label counts."""
    found = [(int(named.min()), int(named.max())) for _, b in blocks(values) if (named := b[b != ignored]).size]
    if not found:
        raise Failure(Code.DATASET_BAD, f"Every label is {ignored}, which does not count.", where="y")
    return min(low for low, _ in found), max(high for _, high in found)
