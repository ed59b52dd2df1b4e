"""A score for every removable unit of a group; the smallest go first.

A unit runs through several parameters. Each is scored on its own, set in proportion over the group's units, and the
unit's score is the mean (sum, largest) over the parameters. With the defaults every group has mean score one, which is
what lets one ranking compare groups. DepGraph (Fang et al., CVPR 2023) adds raw scores up before it divides, where a
normalisation's scale (about one) drowns a convolution's row; dividing first gives every parameter the same say, and
`over="group"` is their order. Biases and buffers do not count, as there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.criteria import Aggregate, Normalize, NormalizeOver, UnitCriterion
from worker.engine.graph.channels import Channels, Group, Member, tensor_named
from worker.engine.score.criteria import CRITERIA
from worker.engine.score.gradients import Gradients, Moments, Statistic
from worker.engine.score.slices import Scores, Slices, slices_of


@dataclass(frozen=True)
class Scoring:
    """How a group's units are scored. `normalize` divides by the mean, sum or maximum over the units, or makes their
    mean 0 and their standard deviation 1; `over`: each parameter's scores, or what they come to together."""

    criterion: UnitCriterion
    aggregate: Aggregate = "mean"
    normalize: Normalize = "mean"
    over: NormalizeOver = "parameters"


def statistics_for(criteria: Iterable[UnitCriterion]) -> frozenset[Statistic]:
    """What `gather` has to collect for them; nothing: they need no data."""
    return frozenset(found for name in criteria if (found := CRITERIA[name].statistic) is not None)


def unscorable(channels: Channels, group: Group, criterion: UnitCriterion) -> str | None:
    """Why the criterion has nothing to go by in this group, if so."""
    if criterion == "bn_gamma" and not scored_members(channels, group, criterion):
        return "has no BatchNorm with a scale, which `bn_gamma` ranks by"
    return None


def unit_scores(
    channels: Channels, group: Group, scoring: Scoring, seed: int, gradients: Gradients | None = None
) -> Scores:
    """One score for each of `group.units`, in their order.

    `gradients` are those of `gather` for `statistics_for` the criterion, where it needs any. `random` draws from
    [0, 1), once for the whole unit, by `seed` and the group alone. Raises ValueError for a group that is `unscorable`.
    """
    if reason := unscorable(channels, group, scoring.criterion):
        raise ValueError(f"{group.id} {reason}")
    if scoring.criterion == "random":
        generator = torch.Generator().manual_seed((seed + sum(group.units)) % 2**63)
        found = [torch.rand(len(group.units), generator=generator, dtype=torch.float64).numpy()]
    else:
        found = [
            _parameter_scores(slices_of(channels, group, member), scoring.criterion, _moments(gradients, member))
            for member in scored_members(channels, group, scoring.criterion)
        ]
    if not found:
        return np.ones(len(group.units))
    if scoring.over == "parameters":
        return _aggregate([_normalize(scores, scoring.normalize) for scores in found], scoring.aggregate)
    return _normalize(_aggregate(found, scoring.aggregate), scoring.normalize)


def scored_members(channels: Channels, group: Group, criterion: UnitCriterion) -> list[Member]:
    """Parameters that carry weight: shared ones once, biases and buffers not at all."""
    found: dict[tuple[int, int], Member] = {}
    for member in group.members:
        tensor = tensor_named(channels.graph, member.parameter)
        path, _, leaf = member.parameter.rpartition(".")
        if not isinstance(tensor, nn.Parameter) or leaf.startswith("bias"):
            continue
        owner = channels.graph.get_submodule(path)
        if criterion == "bn_gamma" and not isinstance(owner, nn.modules.batchnorm._BatchNorm):
            continue
        if criterion == "fpgm" and tensor.dim() < 2:
            continue  # A scale is no filter: that two are alike does not make one superfluous.
        found.setdefault((id(tensor), member.dim), member)
    return list(found.values())


def _parameter_scores(slices: Slices, criterion: UnitCriterion, moments: Moments) -> Scores:
    row = CRITERIA[criterion]
    if row.units is not None:
        return row.units(slices, moments)
    if row.weights is None:
        raise ValueError(f"{criterion} scores no parameters")
    return slices.sum(row.weights(slices.tensor.detach().double(), moments))


def _moments(gradients: Gradients | None, member: Member) -> Moments:
    return gradients.moments.get(member.parameter, Moments()) if gradients is not None else Moments()


def _aggregate(scores: list[Scores], how: Aggregate) -> Scores:
    table = np.stack(scores)
    if how == "max":
        return np.asarray(table.max(axis=0))
    return np.asarray(table.mean(axis=0) if how == "mean" else table.sum(axis=0))


def _normalize(scores: Scores, how: Normalize) -> Scores:
    """Scores that are all zero, or all equal where they are standardised, come to zero."""
    if how == "none":
        return scores
    if how == "standard":
        centre, divisor = scores.mean(), scores.std()
    elif how == "max":
        centre, divisor = 0.0, scores.max()
    else:
        centre, divisor = 0.0, scores.mean() if how == "mean" else scores.sum()
    return np.asarray((scores - centre) / (divisor if divisor > 0 else 1.0))
