"""A score for every single weight of a parameter; the smallest go first."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, fx

from models.criteria import WeightCriterion
from worker.engine.graph.channels import tensor_named
from worker.engine.score.criteria import CRITERIA
from worker.engine.score.gradients import Gradients, Moments


def weight_scores(
    graph: fx.GraphModule, parameter: str, criterion: WeightCriterion, seed: int, gradients: Gradients | None = None
) -> Tensor:
    """Not negative, of the parameter's shape and on its device, in double precision.

    Add them over a block to score the block; for `l2`, whose entries are squares, that is the square of its norm.
    `gradients` are those of `gather` for `statistics_for` the criterion, where it needs any. `random` is uniform in
    [0, 1) and depends on `seed` and the parameter's name alone.
    """
    weight = tensor_named(graph, parameter).detach().double()
    if criterion == "random":
        generator = torch.Generator().manual_seed((seed + zlib.crc32(parameter.encode())) % 2**63)
        return torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    score = CRITERIA[criterion].weights
    if score is None:
        raise ValueError(f"{criterion} scores no single weights")
    moments = gradients.moments.get(parameter, Moments()) if gradients is not None else Moments()
    return score(weight, moments).double()
