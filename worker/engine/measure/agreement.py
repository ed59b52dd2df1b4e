"""How far two networks answer alike."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.label_rules import POSITION_TASKS
from models.spec import Task
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.scores import Values, as_tensor, class_scores, embeddings, token_scores


class AgreementMeter:
    """How far two networks answer alike, 1 for always.

    classification, segmentation, tagging and causal_lm: the share of samples (pixels, positions whose label counts)
    with the same first class; multilabel: the share of equal decisions; embedding: the mean cosine, not below 0;
    otherwise 1 - |a - b| / |a| (Euclidean norms over everything added), not below 0.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.count = 0
        self.equal = torch.zeros(2, dtype=torch.int64)
        self.compared = 0
        self.are_probabilities = True
        self.difference = 0.0
        self.magnitude = 0.0
        self.cosines = 0.0

    def add(self, reference: Values, other: Values, labels: Tensor | None = None) -> None:
        """`labels` are needed where each position of a sequence has one."""
        a, b = as_tensor(reference), as_tensor(other)
        self.count += len(a)
        if self.task == "embedding":
            self.cosines += float(F.cosine_similarity(embeddings(a).double(), embeddings(b).double()).sum())
            return
        if self.task in ("regression", "none"):
            a, b = a.double(), b.double()
            self.difference += float((a - b).square().sum())
            self.magnitude += float(a.square().sum())
            return
        if self.task == "classification":
            a, b = class_scores(a, self.task), class_scores(b, self.task)
        if self.task in POSITION_TASKS and labels is not None:
            named = labels.cpu() != IGNORE_INDEX
            a, b = (token_scores(values, labels, self.task).movedim(1, -1)[named] for values in (a, b))
        if self.task == "multilabel" or a.shape[1:2] == (1,):
            self.are_probabilities = self.are_probabilities and bool(((a >= 0) & (a <= 1)).all())
            self.compared += a.numel()
            self.equal += torch.stack([((a > cut) == (b > cut)).sum() for cut in (0.0, 0.5)])
            return
        same = a.argmax(1) == b.argmax(1)
        self.compared += same.numel()
        self.equal += same.sum()

    def value(self) -> float:
        if self.task == "embedding":
            return max(0.0, self.cosines / self.count)
        if self.task in ("regression", "none"):
            if self.magnitude == 0.0:
                return 1.0 if self.difference == 0.0 else 0.0
            return max(0.0, 1.0 - math.sqrt(self.difference / self.magnitude))
        return int(self.equal[1 if self.are_probabilities else 0]) / self.compared
