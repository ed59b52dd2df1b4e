"""A data set as a job sees it: three splits of batches that fit the network, and what the labels mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.label_rules import POSITION_TASKS, class_channels
from models.metrics import metrics_of
from models.spec import Data, Metric, Task
from models.split_rules import SplitName
from worker.engine.data.contents import read_contents
from worker.engine.data.images import ImageSamples
from worker.engine.data.labels import Labels, read_labels
from worker.engine.data.samples import ArraySamples, Samples
from worker.engine.data.splits import Rows, make_splits
from worker.engine.data.tokens import NextTokens, next_tokens
from worker.engine.team import ALONE, Part, Team


@dataclass(frozen=True)
class Batch:
    """`inputs` in call order, samples first; `labels` as `Labels.read` gives them, None without. `part` says what of a
    larger batch it is, where several processes divide one."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    part: Part | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def whole(self) -> Part:
        """Where in the batch that is trained on its samples lie."""
        return self.part or Part(0, len(self), len(self))

    def to(self, device: torch.device) -> Batch:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, inputs=tuple(value.to(device) for value in self.inputs), labels=labels)


@dataclass(frozen=True)
class Split:
    """Some rows of the samples. Reading is lazy: a batch is read when it is asked for."""

    name: SplitName
    samples: Samples
    rows: Rows
    label_reader: Labels | NextTokens | None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, first: int = 0, team: Team = ALONE
    ) -> Iterator[Batch]:
        """As `unread`, each read when it is asked for."""
        return (read() for read in self.unread(batch_size, generator=generator, first=first, team=team))

    def unread(
        self, batch_size: int, *, generator: torch.Generator | None = None, first: int = 0, team: Team = ALONE
    ) -> Iterator[Callable[[], Batch]]:
        """What reads each batch, in any thread: every sample once, the last batch as small as it comes; shuffled when a
        (CPU) generator is given. Batches before number `first` are left out, and so are the parts that are others' in
        `team`."""
        rows = self.rows
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        for start in range(first * batch_size, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            part = team.part_of(len(batch))
            yield partial(self._read, batch[part.start : part.stop], part)

    def sample(self, count: int, seed: int) -> Batch:
        """`count` samples drawn without repetition (all of them when there are fewer), in one batch."""
        return self._read(self.drawn(count, seed).rows)

    def drawn(self, count: int, seed: int) -> Split:
        """`count` samples drawn without repetition (all of them when there are fewer), unread."""
        generator = torch.Generator().manual_seed(seed)
        return replace(self, rows=self.rows[torch.randperm(len(self.rows), generator=generator)[:count].numpy()])

    def labels(self) -> Tensor | None:
        """All labels of this split, in order."""
        return None if self.label_reader is None else self.label_reader.read(self.rows)

    def _read(self, rows: Rows, part: Part | None = None) -> Batch:
        labels = None if self.label_reader is None else self.label_reader.read(rows)
        return Batch(self.samples.read(rows), labels, part)


@dataclass(frozen=True)
class Dataset:
    """`class_count` is the highest class + 1 (or the number of class folders); None when labels are not classes.

    `has_labels` is False when the task is `none`, whatever the file holds. `metric` is the one that decides.
    `positions` is how many labels a sequence has, where each position has one.
    `split_made_here`: some part was drawn from the seed, so the original may have been trained on it.
    """

    train: Split
    val: Split
    test: Split
    task: Task
    metric: Metric
    has_labels: bool
    class_count: int | None
    split_made_here: bool
    skipped_samples: int = 0
    class_names: list[str] | None = None
    positions: int | None = None

    def check_output(self, output: TensorInfo) -> None:
        """Raises Failure(DATASET_MISMATCH) when the labels cannot belong to this output of the network."""
        if self.class_count is None:
            return
        channels = class_channels(output.shape, self.task, self.positions)
        if channels is not None and channels <= 5 and self.metric == "top5_accuracy":
            raise Failure(
                Code.DATASET_MISMATCH,
                f"The metric 'top5_accuracy' says nothing about {channels} classes; use 'accuracy'.",
                where="/data/metric",
            )
        if channels is None or (channels == 1 and self.class_count <= 2):
            return
        if self.class_count > channels or (self.task == "multilabel" and self.class_count != channels):
            raise Failure(
                Code.DATASET_MISMATCH,
                f"The labels have {self.class_count} classes (0 to {self.class_count - 1}) and the output "
                f"{output.name!r} has {channels} (shape {output.shape}); send the labels it was trained on, or name "
                "another output in `data.output`.",
                where=output.name,
            )


def open_dataset(path: Path, data: Data, inputs: tuple[TensorInfo, ...], seed: int) -> Dataset:
    """Open a data set for a network with these inputs.

    Raises Failure: DATASET_MISMATCH when arrays, images or labels do not fit the network or the task, shown side by
    side; DATASET_BAD for NaN, labels out of range, one class only, an empty split, too many bad images;
    BAD_ARCHIVE and UNKNOWN_FORMAT for what cannot be read at all.
    """
    contents = read_contents(path)
    raw_labels, given, skipped = contents.labels, contents.split, 0
    samples: ArraySamples | ImageSamples
    if contents.pictures is None:
        samples = ArraySamples(contents.arrays, inputs, data.transform)
    else:
        samples = ImageSamples(contents.pictures, inputs, data.transform)
        skipped = samples.skipped
        raw_labels = None if raw_labels is None else raw_labels[samples.kept]
        given = None if given is None else [given[row] for row in samples.kept.tolist()]
    class_names = contents.class_names

    labels = read_labels(raw_labels, data.task, class_names, data.ignore)
    splits = make_splits(len(samples), given, labels.strata if labels else None, seed)
    task = labels.task if labels else data.task or "none"
    reader: Labels | NextTokens | None = labels if task != "none" else None
    if task == "causal_lm" and labels is None:
        reader = next_tokens(samples, inputs, data.ignore)

    def split(name: SplitName, rows: Rows) -> Split:
        return Split(name, samples, rows, reader)

    return Dataset(
        train=split("train", splits.train),
        val=split("val", splits.val),
        test=split("test", splits.test),
        task=task,
        metric=_metric(data.metric, task, has_labels=reader is not None),
        has_labels=reader is not None,
        class_count=labels.class_count if labels else None,
        split_made_here=splits.made_here,
        skipped_samples=skipped,
        class_names=class_names,
        positions=labels.values.shape[1] if labels and task in POSITION_TASKS else None,
    )


def _metric(asked: Metric | None, task: Task, *, has_labels: bool) -> Metric:
    possible = metrics_of(task) if has_labels else metrics_of("none")
    if asked is None:
        return possible[0]
    if asked not in possible:
        with_what = f"the task {task!r}" if has_labels else "data without labels"
        raise Failure(
            Code.DATASET_MISMATCH,
            f"The metric {asked!r} cannot be computed for {with_what}; choose from {', '.join(possible)}.",
            where="/data/metric",
        )
    return asked
