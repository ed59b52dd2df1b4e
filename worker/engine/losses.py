"""What training minimises: the task's loss on labels, the distance to the original's outputs, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import Code, Failure
from models.spec import Task
from worker.engine.measure.meters import class_scores, pixel_scores, same_shape

LossKind = Literal["task", "distill", "both"]
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Objective:
    """A loss as a function of a network's outputs.

    `output` is the position of the output that counts; `probabilities`: it ends in a softmax or sigmoid, which is
    undone first. `scales` has, for each output, the variance that squared errors are divided by; None leaves the
    output out (it is not floating-point). `score_scale` is that of the output that counts with its end undone.
    `weight` is the share of distillation when `kind` is both.
    """

    kind: LossKind
    task: Task
    output: int
    probabilities: bool
    scales: tuple[float | None, ...]
    score_scale: float
    weight: float
    temperature: float

    @property
    def needs_teacher(self) -> bool:
        return self.kind != "task"

    def loss(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...] | None, labels: Tensor | None) -> Tensor:
        """A scalar, the mean over samples. `teacher` are the original's outputs for the same inputs."""
        parts = []
        if self.kind != "distill" and labels is not None:
            share = 1.0 if self.kind == "task" else 1.0 - self.weight
            parts.append(share * task_loss(self.task, outputs[self.output], labels, probabilities=self.probabilities))
        if self.kind != "task" and teacher is not None:
            share = 1.0 if self.kind == "distill" else self.weight
            parts.append(share * self._distillation(outputs, teacher))
        return torch.stack(parts).sum()

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
                own, wanted = (as_logits(value.float(), self.task, True) for value in (own, wanted))
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
            if position == self.output and has_classes(self.task, wanted):
                parts.append(softened_divergence(own, wanted, self.temperature, probabilities=self.probabilities))
            else:
                parts.append(F.mse_loss(own.float(), wanted.float()) / scale)
        return torch.stack(parts).mean()


def objective_for(
    kind: LossKind,
    task: Task,
    output: int,
    teacher: tuple[Tensor, ...],
    *,
    weight: float,
    temperature: float,
) -> Objective:
    """An objective scaled by the original's outputs on some samples.

    Raises Failure(NOT_TRAINABLE) when no output is floating-point.
    """
    if not any(value.is_floating_point() for value in teacher):
        raise Failure(
            Code.NOT_TRAINABLE,
            "No output of the network is floating-point, so nothing can be learnt from it; export the network without "
            "the argmax at its end.",
        )
    probabilities = gives_probabilities(teacher[output], task)
    return Objective(
        kind=kind,
        task=task,
        output=output,
        probabilities=probabilities,
        scales=tuple(_variance(value) if value.is_floating_point() else None for value in teacher),
        score_scale=_variance(as_logits(teacher[output].float(), task, probabilities)),
        weight=weight,
        temperature=temperature,
    )


def task_loss(task: Task, output: Tensor, labels: Tensor, *, probabilities: bool = False) -> Tensor:
    """Cross entropy for classes (of samples or pixels), binary cross entropy for yes or no, squared error for numbers.

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
    scores = class_scores(output, task) if task == "classification" else pixel_scores(output, labels)
    logits = as_logits(scores, task, probabilities)
    if logits.shape[1] == 1:
        named = labels >= 0
        return F.binary_cross_entropy_with_logits(logits[:, 0][named], labels[named].float())
    return F.cross_entropy(logits, labels)


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
    if task not in ("classification", "multilabel", "segmentation") or not output.is_floating_point():
        return False
    values = output.float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        return False
    if not has_classes(task, output):
        return True
    return bool(((values.sum(1) - 1.0).abs() < 1e-2).all())


def has_classes(task: Task, output: Tensor) -> bool:
    """Whether dimension 1 is a choice among classes."""
    return task in ("classification", "segmentation") and output.ndim >= 2 and output.shape[1] > 1


def _variance(values: Tensor) -> float:
    values = values.float()
    variance = float(values.var(correction=0))
    if variance > 0.0:
        return variance
    return float(values.square().mean()) or 1.0
