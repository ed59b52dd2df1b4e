"""What draws weights to zero in training, so that a cut takes less with it.

Norms are part of what is minimised: their subgradient (that of least length, so 0 at 0) is added to the gradient of the
loss once that was clipped, as in the papers. An optimizer that divides by the size of gradients then rests where loss
and norm balance, which draws units that matter little the most; taken apart from the gradient (by their proximal maps)
norms shrank all units alike in our trials. Weights end near zero rather than at it. Growing regularisation is to drive
its units out whatever they are worth, and so it is apart, as decoupled weight decay is (Loshchilov and Hutter, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.spec_regularize import L1, BatchNormGamma, GroupLasso, Growing, Regularize
from worker.engine.graph.channels import Channels, Group
from worker.engine.score.slices import slices_of
from worker.engine.score.units import Scoring, scored_members, unit_scores

NEAR_ZERO = 0.01
"""A unit or weight is near zero when its norm is under this share of the largest in its group or tensor."""


@dataclass(frozen=True)
class Count:
    """How many of `total` weights or units are near zero."""

    near_zero: int
    total: int


class Regularizer(Protocol):
    """A penalty: how much it is, what it does to weights after a step, and how far that has come."""

    def value(self) -> float:
        """Of the weights as they are; of one that grows, at its full strength."""

    def add_gradient(self) -> None:
        """Add what is part of the gradient to `grad`, in place."""

    def shrink(self, rate: float, done: float) -> None:
        """Do what is apart from it, after a step at the learning rate `rate`; `done` is the share of the training
        so far."""

    def count(self) -> Count: ...


@dataclass(frozen=True)
class WeightPenalty:
    """strength · Σ |w| over `tensors`, whose gradient is strength · sign(w)."""

    tensors: Sequence[nn.Parameter]
    strength: float

    def value(self) -> float:
        return self.strength * sum(float(tensor.detach().abs().sum(dtype=torch.float64)) for tensor in self.tensors)

    def add_gradient(self) -> None:
        for tensor in self.tensors:
            _add(tensor, tensor.detach().sign(), self.strength)

    def shrink(self, rate: float, done: float) -> None:
        pass

    def count(self) -> Count:
        near = 0
        for tensor in self.tensors:
            size = tensor.detach().abs()
            near += int((size <= NEAR_ZERO * size.max()).sum())
        return Count(near, sum(tensor.numel() for tensor in self.tensors))


@dataclass(frozen=True)
class Slice:
    """One parameter along `dim`: index i is owned by the unit at `places[i]`, by none where that is the count."""

    tensor: nn.Parameter
    dim: int
    places: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """`values` ([units and one for the rest]) laid along `dim`, of a shape that broadcasts to the tensor's."""
        shape = [1] * self.tensor.dim()
        shape[self.dim] = -1
        return values[self.places].view(shape).to(self.tensor.dtype)


@dataclass(frozen=True)
class Units:
    """The units of one group with all the weights they own; biases and buffers do not count, as in scores."""

    slices: tuple[Slice, ...]
    sizes: Tensor
    """How many weights each has."""

    @classmethod
    def of(cls, channels: Channels, group: Group, device: torch.device) -> Units:
        found, sizes = [], torch.zeros(len(group.units))
        for member in scored_members(channels, group, "l2"):
            cut = slices_of(channels, group, member)
            assert isinstance(cut.tensor, nn.Parameter)
            found.append(Slice(cut.tensor, cut.dim, torch.from_numpy(cut.places).to(device)))
            sizes += torch.from_numpy(cut.sum(torch.ones_like(cut.tensor))).float()
        return cls(tuple(found), sizes.to(device))

    def norms(self) -> Tensor:
        """[units]: the L2 norm of what each owns."""
        total = torch.zeros(len(self.sizes) + 1, device=self.sizes.device)
        for cut in self.slices:
            rest = [dim for dim in range(cut.tensor.dim()) if dim != cut.dim]
            squares = cut.tensor.detach().float().square()
            total.index_add_(0, cut.places, squares.sum(rest) if rest else squares)
        return total[:-1].sqrt()

    def scale(self, factors: Tensor) -> None:
        """Multiply what each unit owns by its factor ([units]), in place."""
        whole = torch.cat([factors, factors.new_ones(1)])
        with torch.no_grad():
            for cut in self.slices:
                cut.tensor.mul_(cut.spread(whole))

    def add_gradient(self, factors: Tensor) -> None:
        """Add to the gradient what each unit owns times its factor ([units])."""
        whole = torch.cat([factors, factors.new_zeros(1)])
        for cut in self.slices:
            _add(cut.tensor, cut.tensor.detach() * cut.spread(whole), 1.0)


@dataclass(frozen=True)
class GroupPenalty:
    """strength · Σ √n ‖w‖₂ over units, whose gradient is strength · √n · w / ‖w‖₂."""

    groups: Sequence[Units]
    strength: float

    def value(self) -> float:
        return self.strength * sum(float((units.sizes.sqrt() * units.norms()).sum()) for units in self.groups)

    def add_gradient(self) -> None:
        for units in self.groups:
            norms = units.norms()
            units.add_gradient(torch.where(norms > 0, self.strength * units.sizes.sqrt() / norms, 0.0))

    def shrink(self, rate: float, done: float) -> None:
        pass

    def count(self) -> Count:
        return _near_zero_units(self.groups)


@dataclass(frozen=True)
class GrowingPenalty:
    """½ λ ‖w‖² on the units that `drawn` marks in each group: w becomes w / (1 + rate · λ). In part k (from 1) of
    `rises` equal parts of the training λ is strength · k / rises."""

    groups: Sequence[Units]
    drawn: Sequence[Tensor]
    strength: float
    rises: int

    def weight_at(self, done: float) -> float:
        """λ when the share `done` of the training lies behind."""
        return self.strength * min(self.rises, 1 + math.floor(done * self.rises)) / self.rises

    def value(self) -> float:
        return (
            0.5
            * self.strength
            * sum(
                float(units.norms()[drawn].square().sum()) for units, drawn in zip(self.groups, self.drawn, strict=True)
            )
        )

    def add_gradient(self) -> None:
        pass

    def shrink(self, rate: float, done: float) -> None:
        factor = 1.0 / (1.0 + rate * self.weight_at(done))
        for units, drawn in zip(self.groups, self.drawn, strict=True):
            units.scale(torch.where(drawn, factor, 1.0))

    def count(self) -> Count:
        return _near_zero_units(self.groups)


def penalty_for(asked: Regularize, channels: Channels, drawn: Mapping[str, Sequence[int]] | None) -> Regularizer:
    """The penalty that `asked` names, for the network of `channels`. `drawn`: of one that grows, what `units_to_draw`
    gave. Raises ValueError where no unit or scale is there to draw."""
    network = channels.graph
    device = next(network.parameters()).device
    if isinstance(asked, L1):
        return WeightPenalty([tensor for tensor in network.parameters() if _decays(tensor)], asked.strength)
    if not channels.groups:
        raise ValueError("no channel of this network can be removed")
    if isinstance(asked, BatchNormGamma):
        members = [member for group in channels.groups for member in scored_members(channels, group, "bn_gamma")]
        names = [member.parameter for member in members]
        if asked.shifts:
            names += [f"{name.removesuffix('weight')}bias" for name in names]
        drawn_alone = {id(tensor): tensor for tensor in map(network.get_parameter, names)}
        if not drawn_alone:
            raise ValueError("no channels that can be removed have a BatchNorm")
        return WeightPenalty(list(drawn_alone.values()), asked.strength)
    groups = [Units.of(channels, group, device) for group in channels.groups]
    if isinstance(asked, GroupLasso):
        return GroupPenalty(groups, asked.strength)
    marks = []
    for group in channels.groups:
        own = set((drawn or {}).get(group.id, ()))
        marks.append(torch.tensor([unit in own for unit in group.units], device=device))
    return GrowingPenalty(groups, marks, asked.strength, asked.rises)


def units_to_draw(asked: Growing, channels: Channels, seed: int) -> dict[str, list[int]]:
    """By the id of a group the units ranked lowest in it, as many as `asked.fraction` says; one stays at least."""
    found = {}
    for group in channels.groups:
        scores = unit_scores(channels, group, Scoring(asked.criterion), seed)
        count = min(len(scores) - 1, round(asked.fraction * len(scores)))
        found[group.id] = [group.units[place] for place in scores.argsort(kind="stable")[:count].tolist()]
    return found


def what_came_of_it(asked: Regularize, before: dict[str, Any], penalty: Regularizer) -> dict[str, Any]:
    """For the report: the penalty and how many weights, scales or units are near zero, `before` and now."""
    of = {L1: "weights", BatchNormGamma: "scales"}.get(type(asked), "units")
    now = described(penalty)
    return {
        "penalty": asked.penalty,
        "strength": asked.strength,
        "of": of,
        "total": now["total"],
        "near_zero_before": before["near_zero"],
        "near_zero_after": now["near_zero"],
        "value_before": before["value"],
        "value_after": now["value"],
    }


def described(penalty: Regularizer) -> dict[str, Any]:
    count = penalty.count()
    return {"near_zero": count.near_zero, "total": count.total, "value": penalty.value()}


def _decays(tensor: nn.Parameter) -> bool:
    return tensor.is_floating_point() and tensor.dim() >= 2


def _add(tensor: nn.Parameter, values: Tensor, factor: float) -> None:
    if tensor.grad is not None:
        tensor.grad.add_(values, alpha=factor)


def _near_zero_units(groups: Sequence[Units]) -> Count:
    near = 0
    for units in groups:
        norms = units.norms()
        near += int((norms <= NEAR_ZERO * norms.max()).sum())
    return Count(near, sum(len(units.sizes) for units in groups))
