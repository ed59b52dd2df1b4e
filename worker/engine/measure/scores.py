"""The outputs of a network, torch tensors or numpy arrays, in the shape that a task judges them in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.label_rules import class_dimension
from models.spec import Task

Values = Tensor | np.ndarray[Any, np.dtype[Any]]


def as_tensor(values: Values) -> Tensor:
    return torch.as_tensor(values).detach().cpu()


def class_scores(outputs: Values, task: Task) -> Tensor:
    """[N, K] from [N], [N, K] or [N, K, 1, …]. Raises Failure(DATASET_MISMATCH) for any other shape."""
    scores = torch.as_tensor(outputs)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim < 2 or scores[:1, :1].numel() != 1:
        raise mismatch(scores, task, "[N, classes]")
    return scores.flatten(1)


def same_shape(outputs: Values, labels: Tensor, task: Task) -> Tensor:
    """Outputs in the shape of the labels. Raises Failure(DATASET_MISMATCH) when their sizes differ."""
    values = torch.as_tensor(outputs)
    wanted = [size for size in labels.shape[1:] if size != 1]
    if len(values) != len(labels) or [size for size in values.shape[1:] if size != 1] != wanted:
        raise mismatch(values, task, f"{['N', *labels.shape[1:]]} like the labels")
    return values.reshape(labels.shape).cpu()


def pixel_scores(outputs: Values, labels: Tensor) -> Tensor:
    """[N, K, H, W] that covers labels [N, H, W]. Raises Failure(DATASET_MISMATCH) otherwise."""
    scores = torch.as_tensor(outputs)
    if scores.ndim == labels.ndim:
        scores = scores[:, None]
    if scores.ndim != 4 or scores.shape[2:] != labels.shape[1:]:
        raise mismatch(scores, "segmentation", f"[N, classes, {', '.join(map(str, labels.shape[1:]))}] like the labels")
    return scores


def token_scores(outputs: Values, labels: Tensor, task: Task) -> Tensor:
    """[N, K, L] for labels [N, L], from [N, L, K] or, in `tagging`, [N, K, L] or [N, L] (one score a position).

    Raises Failure(DATASET_MISMATCH) for any other shape.
    """
    scores = torch.as_tensor(outputs)
    length = labels.shape[1]
    dimension = class_dimension(scores.shape, task, length)
    if dimension is None and scores.ndim == 2:
        scores = scores[:, None]
    elif scores.ndim == 3:
        scores = scores.movedim(dimension or 1, 1)
    if scores.ndim != 3 or scores.shape[2] != length:
        wanted = f"[N, {length}, classes]" if task == "tagging" else f"[N, {length}, vocabulary]"
        raise mismatch(torch.as_tensor(outputs), task, wanted)
    return scores


def embeddings(outputs: Values) -> Tensor:
    """[N, D] from [N, D] or [N, D, 1, …]. Raises Failure(DATASET_MISMATCH) for any other shape."""
    values = torch.as_tensor(outputs)
    if values.ndim < 2 or len([size for size in values.shape[1:] if size != 1]) != 1:
        raise mismatch(values, "embedding", "[N, features]")
    return values.flatten(1)


def check_labels(labels: Tensor, channels: int) -> None:
    """One channel is one score, for two classes."""
    classes = max(2, channels)
    if int(labels.max()) >= classes:
        raise Failure(
            Code.DATASET_MISMATCH,
            f"A label is {int(labels.max())} and the network's output has {classes} classes (0 to {classes - 1}); "
            "send the labels it was trained on, or name another output in `data.output`.",
        )


def mismatch(outputs: Tensor, task: Task, wanted: str) -> Failure:
    return Failure(
        Code.DATASET_MISMATCH,
        f"The task {task!r} takes an output {wanted}; the network's output is {['N', *outputs.shape[1:]]}. "
        "Name another output in `data.output`, or set `data.task` to what the network does.",
    )
