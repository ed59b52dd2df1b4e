"""What training minimises: the task's loss on labels, the distance to the original's outputs, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import Code, Failure
from models.label_rules import POSITION_TASKS, class_dimension
from models.spec import Task
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.scores import class_scores, embeddings, pixel_scores, same_shape, token_scores
from worker.engine.team import ALONE, Team

LossKind = Literal["task", "distill", "both"]
CLASS_TASKS: tuple[Task, ...] = ("classification", "segmentation", *POSITION_TASKS)
SMALLEST_PROBABILITY = 1e-7
CONTRAST_TEMPERATURE = 0.1
"""Of the supervised contrastive loss, as its authors use it."""


@dataclass(frozen=True)
class Objective:
    """A loss as a function of a network's outputs.

    `output` is the position of the output that counts, with its classes along dimension `classes` (None: it has no such
    dimension); `probabilities`: it ends in a softmax or sigmoid, which is undone first. `scales` has, for each output,
    the variance that squared errors are divided by; None leaves the output out (it is not floating-point).
    `score_scale` is that of the output that counts with its end undone.
    `weight` is the share of distillation when `kind` is both.
    """

    kind: LossKind
    task: Task
    output: int
    classes: int | None
    probabilities: bool
    scales: tuple[float | None, ...]
    score_scale: float
    weight: float
    temperature: float

    @property
    def needs_teacher(self) -> bool:
        return self.kind != "task"

    @property
    def teachers_share(self) -> float:
        return {"task": 0.0, "distill": 1.0, "both": self.weight}[self.kind]

    def loss(
        self,
        outputs: tuple[Tensor, ...],
        teacher: tuple[Tensor, ...] | None,
        labels: Tensor | None,
        team: Team = ALONE,
    ) -> Tensor:
        """A scalar, the mean over samples; of a batch that `team` divides, what this part adds to it. `teacher` are the
        original's outputs for the same inputs."""
        parts = []
        if self.kind != "distill" and labels is not None:
            share = 1.0 if self.kind == "task" else 1.0 - self.weight
            parts.append(share * self._of_labels(outputs[self.output], labels, team))
        if self.kind != "task" and teacher is not None:
            share = 1.0 if self.kind == "distill" else self.weight
            parts.append(share * team.share * self._distillation(outputs, teacher))
        return torch.stack(parts).sum()

    def _of_labels(self, output: Tensor, labels: Tensor, team: Team) -> Tensor:
        if self.task == "embedding" and team.divides:
            # Pairs lie across parts. Everyone has the whole loss, and of its gradient what reaches the own rows.
            whole = task_loss(self.task, team.gathered(output), team.gathered(labels))
            return whole - (1.0 - 1.0 / team.size) * whole.detach()
        share: Tensor | float = team.share
        if self.task in CLASS_TASKS and team.divides:
            share = team.share_of((labels != IGNORE_INDEX).sum())
        return share * task_loss(self.task, output, labels, probabilities=self.probabilities)

    def sampled_loss(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
        """Distillation with a target drawn around the teacher's answer in place of the answer itself.

        A network that still gives the teacher's answers is at the minimum of any distillation loss, where its gradient
        is zero and says nothing. The loss is half the squared error of every floating-point output (of the scores
        where classes are told apart: Ba and Caruana, 2014), which is the divergence of two normal distributions; the
        noise is theirs. So the expectation of this gradient is the gradient of that loss, and where that is zero the
        expectation of its square is the diagonal of the loss's second derivative, the Fisher information (Martens,
        2020). Unlike that of sampled classes it does not vanish where the network is sure.
        A scalar, the mean over samples; `draw` is a CPU generator.
        """
        parts = []
        floating = sum(scale is not None for scale in self.scales)
        for position, (own, wanted, scale) in enumerate(zip(outputs, teacher, self.scales, strict=True)):
            if scale is None:
                continue
            if position == self.output and self.probabilities:
                own, wanted = (as_logits(self._first(value.float()), self.task, True) for value in (own, wanted))
                scale = self.score_scale
            noise = torch.randn(wanted.shape, generator=draw).to(own.device)
            spread = math.sqrt(floating * scale * wanted.numel() / len(wanted))
            parts.append(F.mse_loss(own.float(), wanted.float() + spread * noise) / (2.0 * scale))
        return torch.stack(parts).mean()

    def _distillation(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        parts = []
        for position, (own, wanted, scale) in enumerate(zip(outputs, teacher, self.scales, strict=True)):
            if scale is None:
                continue
            if position == self.output and has_classes(self.task, self._first(wanted)):
                own, wanted = self._first(own), self._first(wanted)
                parts.append(softened_divergence(own, wanted, self.temperature, probabilities=self.probabilities))
            elif position == self.output and self.task == "embedding":
                parts.append(cosine_distance(own, wanted))
            else:
                parts.append(F.mse_loss(own.float(), wanted.float()) / scale)
        return torch.stack(parts).mean()

    def _first(self, value: Tensor) -> Tensor:
        return classes_first(value, self.classes)


def objective_for(
    kind: LossKind,
    task: Task,
    output: int,
    teacher: tuple[Tensor, ...],
    labels: Tensor | None = None,
    *,
    weight: float,
    temperature: float,
) -> Objective:
    """An objective scaled by the original's outputs on some samples, whose labels, where there are any, tell the
    positions of a sequence from its classes.

    Raises Failure(NOT_TRAINABLE) when no output is floating-point.
    """
    if not any(value.is_floating_point() for value in teacher):
        raise Failure(
            Code.NOT_TRAINABLE,
            "No output of the network is floating-point, so nothing can be learnt from it; export the network without "
            "the argmax at its end.",
        )
    positions = labels.shape[1] if labels is not None and task in POSITION_TASKS else None
    classes = class_dimension(teacher[output].shape, task, positions)
    counting = classes_first(teacher[output], classes)
    probabilities = gives_probabilities(counting, task)
    return Objective(
        kind=kind,
        task=task,
        output=output,
        classes=classes,
        probabilities=probabilities,
        scales=tuple(_variance(value) if value.is_floating_point() else None for value in teacher),
        score_scale=_variance(as_logits(counting.float(), task, probabilities)),
        weight=weight,
        temperature=temperature,
    )


def task_loss(task: Task, output: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
    """Cross entropy for classes (of samples, pixels or positions), binary cross entropy for yes or no, squared error
    for numbers, the supervised contrastive loss for embeddings. What is ignored has no part in the mean.

    Raises Failure(DATASET_MISMATCH) when the output does not have the task's shape.
    """
    output = output.float()
    if task == "regression":
        # `same_shape` is checked on the shapes; the values must keep their gradient and device.
        same_shape(output.detach(), labels, task)
        return F.mse_loss(output.reshape(labels.shape), labels)
    if task == "multilabel":
        same_shape(output.detach(), labels, task)
        return F.binary_cross_entropy_with_logits(as_logits(output, task, probabilities).reshape(labels.shape), labels)
    if task == "embedding":
        return supervised_contrast(embeddings(output), labels)
    if task in POSITION_TASKS:
        scores = token_scores(output, labels, task)
    else:
        scores = class_scores(output, task) if task == "classification" else pixel_scores(output, labels)
    logits = as_logits(scores, task, probabilities)
    named = labels != IGNORE_INDEX
    if task != "classification" and not bool(named.any()):
        return logits.sum() * 0.0  # A mean over nothing would be NaN.
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0][named], labels[named].float())
    if task in POSITION_TASKS:
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)


def supervised_contrast(rows: Tensor, labels: Tensor, temperature: float = CONTRAST_TEMPERATURE) -> Tensor:
    """The loss L_out of Khosla et al., 2020 (equation 2) on embeddings [N, D] with one view a sample: the mean over
    anchors of the mean over their positives p of -log(exp(z·p / t) / Σ exp(z·a / t)), z of length 1, a all others.

    Samples without another of their label in the batch are no anchors; without any anchor the loss is 0.
    """
    directions = F.normalize(rows.float())
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    anchors = positive.any(1)
    if not bool(anchors.any()):
        return rows.sum() * 0.0
    log_share = (scores - scores.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    return -(log_share.sum(1)[anchors] / positive.sum(1)[anchors]).mean()


def cosine_distance(own: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine of embeddings, the mean over samples: the direction is learnt, as retrieval by cosine looks at it."""
    return (1.0 - F.cosine_similarity(embeddings(own).float(), embeddings(wanted).float())).mean()


def softened_divergence(own: Tensor, wanted: Tensor, temperature: float, *, probabilities: bool = False) -> Tensor:
    """KL divergence of the classes (dimension 1) at `temperature`, times its square (Hinton et al., 2015, section 2.1:
    so that its gradients keep their size beside the task's)."""
    own_logits, wanted_logits = (
        as_logits(value.float(), "classification", probabilities).movedim(1, -1).flatten(0, -2) / temperature
        for value in (own, wanted)
    )
    divergence = F.kl_div(
        own_logits.log_softmax(-1), wanted_logits.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return divergence * temperature**2


def as_logits(output: Tensor, task: Task, probabilities: bool) -> Tensor:
    """Undo the softmax (over dimension 1) or sigmoid at the end of a network that gives probabilities."""
    if not probabilities:
        return output
    if task == "multilabel" or output.ndim < 2 or output.shape[1] == 1:
        return torch.logit(output, eps=SMALLEST_PROBABILITY)
    return output.clamp_min(SMALLEST_PROBABILITY).log()


def gives_probabilities(output: Tensor, task: Task) -> bool:
    """Whether all values lie in 0 to 1 and, where classes exclude one another, sum to 1 over dimension 1."""
    if task not in ("multilabel", *CLASS_TASKS) or not output.is_floating_point():
        return False
    values = output.float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        return False
    if not has_classes(task, output):
        return True
    return bool(((values.sum(1) - 1.0).abs() < 1e-2).all())


def has_classes(task: Task, output: Tensor) -> bool:
    """Whether dimension 1 is a choice among classes."""
    return task in CLASS_TASKS and output.ndim >= 2 and output.shape[1] > 1


def classes_first(output: Tensor, dimension: int | None) -> Tensor:
    """With the classes, which are along `dimension` (None: along none), along dimension 1."""
    return output.unsqueeze(1) if dimension is None else output.movedim(dimension, 1)


def _variance(values: Tensor) -> float:
    values = values.float()
    variance = float(values.var(correction=0))
    if variance > 0.0:
        return variance
    return float(values.square().mean()) or 1.0
