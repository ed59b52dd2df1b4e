"""Criteria: a score for every removable unit; the smallest go first.

A unit runs through several parameters. Each is scored on its own, divided by its mean over the group's units, and the
unit's score is the mean over the parameters: so every group has mean score one, which is what lets one ranking compare
groups. DepGraph (Fang et al., CVPR 2023) aggregates and normalises so, but adds raw norms up before it divides, where a
normalisation's scale (about one) drowns a convolution's row; dividing first gives every parameter the same say. Biases
and buffers do not count, as there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worker.engine.graph.channels import Channels, Group, Member, tensor_named
from worker.engine.graph.labels import Indices

Criterion = Literal["l1", "l2", "random"]
Scores = NDArray[np.float64]


def score(channels: Channels, group: Group, criterion: Criterion, seed: int) -> Scores:
    """One score for each of `group.units`, in their order.

    `l1` (Li et al., 2017) and `l2` are norms of the weights a unit touches. `random` is uniform in [0, 1): the control
    that every criterion must beat; it depends on `seed` and the group's id alone.
    """
    if criterion == "random":
        generator = torch.Generator().manual_seed((seed + sum(group.units)) % 2**63)
        return torch.rand(len(group.units), generator=generator, dtype=torch.float64).numpy()
    norms = [_norms(channels, group, member, 1 if criterion == "l1" else 2) for member in _scored(channels, group)]
    if not norms:
        return np.ones(len(group.units))
    return np.asarray(np.mean([norm / norm.mean() if norm.any() else norm for norm in norms], axis=0))


def _scored(channels: Channels, group: Group) -> list[Member]:
    """Parameters that carry weight: shared ones once, biases and buffers not at all."""
    found: dict[tuple[int, int], Member] = {}
    for member in group.members:
        tensor = tensor_named(channels.graph, member.parameter)
        leaf = member.parameter.rpartition(".")[2]
        if isinstance(tensor, nn.Parameter) and not leaf.startswith("bias"):
            found.setdefault((id(tensor), member.dim), member)
    return list(found.values())


def _norms(channels: Channels, group: Group, member: Member, power: int) -> Scores:
    """The p-norm of everything in one parameter that each unit touches."""
    axis = channels.parameters[member.parameter][member.dim]
    if axis is None:
        raise ValueError(f"{member} has no labels")
    sums = _slices(tensor_named(channels.graph, member.parameter), member.dim, power)
    places = _places(group, channels.units_of(axis))
    total = np.zeros(len(group.units) + 1)
    np.add.at(total, places, sums)
    return np.asarray(total[:-1] ** (1 / power))


def _slices(tensor: Tensor, dim: int, power: int) -> Scores:
    """Sum of |value|^power over everything but `dim`."""
    values = tensor.detach().double().abs().pow(power)
    summed = values.sum([other for other in range(tensor.dim()) if other != dim]) if tensor.dim() > 1 else values
    return np.asarray(summed.cpu().numpy())


def _places(group: Group, units: Indices) -> Indices:
    """Where each index's unit stands in `group.units`; one past the end for units of other groups."""
    own = np.asarray(group.units, dtype=np.int64)
    places = np.searchsorted(own, units)
    found = own[np.minimum(places, len(own) - 1)] == units
    return np.where(found, places, len(own))
