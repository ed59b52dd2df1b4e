"""One parameter, cut into the parts that units of a group own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.graph.channels import Channels, Group, Member, tensor_named
from worker.engine.graph.labels import Indices

Scores = NDArray[np.float64]
"""One for each unit of a group, in the order of `group.units`."""


@dataclass(frozen=True)
class Slices:
    """`tensor` along `dim`: index i belongs to the unit at `places[i]`, or to none of this group where that is
    `count`. A unit may own several indices (the rows of a head)."""

    tensor: Tensor
    dim: int
    places: Indices
    count: int

    def sum(self, values: Tensor) -> Scores:
        """For each unit the sum of `values`, which have the shape of `tensor`, over what it owns."""
        rest = [other for other in range(values.dim()) if other != self.dim]
        summed = values.double().sum(rest) if rest else values.double()
        total = np.zeros(self.count + 1)
        np.add.at(total, self.places, summed.cpu().numpy())
        return total[:-1]

    def vectors(self) -> Tensor:
        """[units, values]: what each unit owns, laid out alike, zeros where one owns less than another."""
        own = np.flatnonzero(self.places < self.count)
        order = own[np.argsort(self.places[own], kind="stable")]
        places = self.places[order]
        sizes = np.bincount(places, minlength=self.count)
        within = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = self.tensor.detach().movedim(self.dim, 0).flatten(1) if self.tensor.dim() > 1 else self.tensor[:, None]
        laid = rows.new_zeros((self.count, int(sizes.max(initial=0)), rows.shape[1]))
        laid[torch.from_numpy(places), torch.from_numpy(within)] = rows.detach()[torch.from_numpy(order)]
        return laid.flatten(1)


def slices_of(channels: Channels, group: Group, member: Member) -> Slices:
    """One member of a group. Raises ValueError where it has no labels."""
    axis = channels.parameters[member.parameter][member.dim]
    if axis is None:
        raise ValueError(f"{member} has no labels")
    own, units = np.asarray(group.units, dtype=np.int64), channels.units_of(axis)
    places = np.searchsorted(own, units)
    found = own[np.minimum(places, len(own) - 1)] == units
    tensor = tensor_named(channels.graph, member.parameter)
    return Slices(tensor, member.dim, np.where(found, places, len(own)), len(own))
