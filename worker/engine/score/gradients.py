"""What gradients say about each weight, gathered sample by sample.

Every sample goes through the network alone, so that a score is an expectation over samples that no batch size enters:
averaged over a batch, the gradients of a trained network cancel. Nothing but running means is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.criteria import GRADIENT_SAMPLES, GradientLoss
from models.errors import Code, Failure
from worker.engine.data.dataset import Batch, Dataset
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.graph.channels import Channels, tensor_named
from worker.engine.losses import objective_for
from worker.engine.measure.metrics import as_outputs, forward_of, index_outside, output_index
from worker.engine.run import Run
from worker.engine.score.slices import Scores
from worker.engine.subject import Subject
from worker.engine.trainable import trainable

Statistic = Literal["magnitude", "square", "joint"]
"""E|g| and E[g²] of every weight; E[(Σ w g)²] over what a unit owns of one dimension of one parameter."""

SCALE_SAMPLES = 64
"""Training samples from which the original's outputs are scaled."""


@dataclass
class Moments:
    """Means over samples, for one parameter: `magnitude` and `square` of its shape, `joint` by dimension and index
    (the value of the unit that owns the index). None or absent where they were not asked for."""

    magnitude: Tensor | None = None
    square: Tensor | None = None
    joint: dict[int, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class Gradients:
    """`moments` by parameter name; `loss` says what was differentiated, over how many `samples`."""

    moments: Mapping[str, Moments]
    loss: GradientLoss
    samples: int


def gather(
    subject: Subject,
    run: Run,
    statistics: Collection[Statistic],
    samples: int | None,
    seed: int,
    channels: Channels | None = None,
    loss: GradientLoss | None = None,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Gradients:
    """Send up to `samples` training samples through `subject.graph`, in eval mode, and collect its gradients; without
    a choice as many as `GRADIENT_SAMPLES`.

    `task` is the loss on labels, `distill` distillation from the original with sampled targets
    (`Objective.sampled_loss`); without a choice the former where there are labels. `joint` needs `channels`, the
    analysis of that graph. The same seed gives the same values on a CPU.
    Raises Failure: INVALID_SPEC without data or the labels that `task` needs, NOT_TRAINABLE when no gradient reaches a
    parameter, NAN_LOSS when one is not finite, DATASET_MISMATCH when labels do not fit the output.
    """
    data = _require_data(run)
    network = subject.graph.to(run.device)
    loss_of, kind = _loss(subject, run, data, loss, seed)
    chosen = data.train.drawn(samples or GRADIENT_SAMPLES, seed)
    with trainable(network), _recurrent_differentiable(network):
        sums = _Sums(network, frozenset(statistics), channels)
        for number, batch in enumerate(chosen.batches(1)):
            if batch.labels is not None and bool((batch.labels == IGNORE_INDEX).all()):
                continue  # No pixel of this sample has a class.
            sums.add(loss_of(batch.to(run.device)))
            on_progress((number + 1) / len(chosen))
        return Gradients(sums.means(), kind, sums.count)


def _require_data(run: Run) -> Dataset:
    if run.data is None:
        raise Failure(
            Code.INVALID_SPEC,
            "This criterion needs gradients, and those need data: name a `dataset` (labels are not needed), or choose "
            "a criterion that reads weights alone, such as `l2`.",
            where="/data",
        )
    return run.data


def _loss(
    subject: Subject, run: Run, data: Dataset, asked: GradientLoss | None, seed: int
) -> tuple[Callable[[Batch], Tensor], GradientLoss]:
    network = subject.graph
    teacher = forward_of(subject.original.to(run.device), run.device)
    output = output_index(subject.outputs, run.spec.data.output if run.spec.data else None)
    data.check_output(subject.outputs[output])
    some = data.train.sample(SCALE_SAMPLES, seed)
    scaled_by = teacher(some.inputs)
    labelled = data.has_labels and data.task != "embedding" and scaled_by[output].is_floating_point()
    if asked == "task" and not labelled:
        raise Failure(
            Code.INVALID_SPEC,
            'Gradients of the loss "task" need labels, a task and scores that are floating-point; use "distill".',
            where="/steps/loss",
        )
    kind: GradientLoss = asked or ("task" if labelled else "distill")
    objective = objective_for(kind, data.task, output, scaled_by, some.labels, weight=1.0, temperature=1.0)
    draw = torch.Generator().manual_seed(seed)

    def loss_of(batch: Batch) -> Tensor:
        try:
            outputs = as_outputs(network(*batch.inputs))
        except IndexError as error:
            raise index_outside(error) from error
        if kind == "task":
            return objective.loss(outputs, None, batch.labels)
        return objective.sampled_loss(outputs, teacher(batch.inputs), draw)

    return loss_of, kind


class _Sums:
    """Running sums of what was asked for, one entry a parameter; a parameter under several names is one."""

    def __init__(self, network: nn.Module, statistics: frozenset[Statistic], channels: Channels | None) -> None:
        self.count = 0
        self._network = network
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._reached = False
        self._magnitude = self._zeros() if "magnitude" in statistics else None
        self._square = self._zeros() if "square" in statistics else None
        self._joint = self._places(channels) if "joint" in statistics and channels is not None else []

    def add(self, loss: Tensor) -> None:
        """Differentiate the loss of one sample. The graph of the sample is gone afterwards."""
        self.count += 1
        if not loss.requires_grad:
            return
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._reached = self._reached or any(gradient is not None for gradient in found)
        for position, gradient in enumerate(found):
            if gradient is None:
                continue
            if self._magnitude is not None:
                self._magnitude[position] += gradient.abs()
            if self._square is not None:
                self._square[position] += gradient.float().square()
        for joint in self._joint:
            gradient = found[joint.parameter]
            if gradient is not None:
                joint.add(self._parameters[joint.parameter].detach().float() * gradient.float())

    def means(self) -> dict[str, Moments]:
        if not self._reached:
            raise Failure(Code.NOT_TRAINABLE, "No gradient reaches the network's parameters from the loss.")
        found = [Moments() for _ in self._parameters]
        for position, moments in enumerate(found):
            if self._magnitude is not None:
                moments.magnitude = self._finite(self._magnitude[position] / self.count)
            if self._square is not None:
                moments.square = self._finite(self._square[position] / self.count)
        for joint in self._joint:
            found[joint.parameter].joint[joint.dim] = self._finite(joint.squares[joint.unit] / self.count).cpu().numpy()
        of = {id(parameter): moments for parameter, moments in zip(self._parameters, found, strict=True)}
        named = self._network.named_parameters(remove_duplicate=False)
        return {name: of[id(parameter)] for name, parameter in named if id(parameter) in of}

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self._parameters]

    def _places(self, channels: Channels) -> list[_Joint]:
        """Each labelled dimension of each parameter once."""
        position = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        found: dict[tuple[int, int], _Joint] = {}
        for name, axes in channels.parameters.items():
            tensor = tensor_named(channels.graph, name)
            for dim, axis in enumerate(axes):
                if axis is not None and id(tensor) in position:
                    components, unit = np.unique(channels.units_of(axis), return_inverse=True)
                    place = (position[id(tensor)], dim)
                    found.setdefault(place, _Joint(*place, torch.from_numpy(unit).to(tensor.device), len(components)))
        return list(found.values())

    @staticmethod
    def _finite(values: Tensor) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            raise Failure(
                Code.NAN_LOSS,
                "A gradient is NaN or infinite, so nothing can be scored by it; choose a criterion that reads weights "
                "alone, such as `l2`.",
            )
        return values


class _Joint:
    """One dimension of one parameter: `squares` has for each unit the sum over samples of (Σ w g)²."""

    def __init__(self, parameter: int, dim: int, unit: Tensor, units: int) -> None:
        self.parameter, self.dim, self.unit = parameter, dim, unit
        self.squares = torch.zeros(units, dtype=torch.float64, device=unit.device)

    def add(self, products: Tensor) -> None:
        rest = [dim for dim in range(products.dim()) if dim != self.dim]
        by_index = (products.sum(rest) if rest else products).double()
        self.squares += torch.zeros_like(self.squares).index_add_(0, self.unit, by_index).square()


@contextlib.contextmanager
def _recurrent_differentiable(network: nn.Module) -> Iterator[None]:
    """cuDNN differentiates recurrent layers in training mode alone; what that changes, dropout, is off meanwhile."""
    layers = [module for module in network.modules() if isinstance(module, nn.RNNBase)]
    dropouts = [layer.dropout for layer in layers]
    for layer in layers:
        layer.train()
        layer.dropout = 0.0
    try:
        yield
    finally:
        for layer, dropout in zip(layers, dropouts, strict=True):
            layer.eval()
            layer.dropout = dropout
