"""k-means, the same for the same seed, in bounded memory.

Seeds are drawn by k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's iterations (1982). Where many points are
given, seeds and most iterations see a sample of them, the last ones all.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 25
LAST_ITERATIONS = 3
"""Over all points, where a sample came before."""
SAMPLE = 1 << 15
_DISTANCES = 1 << 22
"""How many distances are in memory at once."""


def kmeans(points: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of [points, dimension]: `count` centres, and for each point the number of the nearest (int64).

    A cluster that gets empty moves to the point that is farthest from its centre."""
    generator = torch.Generator().manual_seed(seed)
    points = points.detach().cpu().double()
    sample = points
    if len(points) > SAMPLE:
        sample = points[torch.randperm(len(points), generator=generator)[:SAMPLE]]
    centres = seeds(sample, count, generator)
    centres = lloyd(sample, centres, ITERATIONS)[0]
    if len(points) > SAMPLE:
        centres = lloyd(points, centres, LAST_ITERATIONS)[0]
    centres = centres.float().double()
    return centres.float(), nearest(points, centres)[0]


def seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Each next one a point drawn with the chance of its squared distance from those before."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    distances = (points - points[first]).square().sum(1)
    while len(chosen) < count:
        if float(distances.sum()) > 0:
            place = int(
                torch.searchsorted(distances.cumsum(0), torch.rand(1, generator=generator).double() * distances.sum())
            )
            place = min(place, len(points) - 1)
        else:
            place = first  # Fewer points differ than are asked for: the rest are never the nearest.
        chosen.append(place)
        distances = torch.minimum(distances, (points - points[place]).square().sum(1))
    return points[chosen]


def lloyd(points: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, list[float]]:
    """The centres after so many iterations, fewer where nothing moves any more; the sums of squared distances to the
    centre before each, which never grow."""
    history: list[float] = []
    for _ in range(iterations):
        labels, distances = nearest(points, centres)
        history.append(float(distances.sum()))
        sizes = torch.bincount(labels, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        moved = torch.where(sizes.unsqueeze(1) > 0, sums / sizes.clamp_min(1).unsqueeze(1), centres)
        empty = (sizes == 0).nonzero().flatten()
        far = distances.topk(min(len(empty), len(points))).indices
        far = far[distances[far] > 0]
        moved[empty[: len(far)]] = points[far]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, history


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the nearest centre of each point, and the squared distance to it."""
    if points.shape[1] == 1:
        ordered, order = centres.flatten().sort(stable=True)
        between = (ordered[1:] + ordered[:-1]) / 2
        labels = order[torch.bucketize(points.flatten(), between)]
        return labels, (points - centres[labels]).square().sum(1)
    norms = centres.square().sum(1)
    blocks = torch.split(points, max(1, _DISTANCES // len(centres)))
    labels = torch.cat([(norms - 2 * block @ centres.t()).argmin(1) for block in blocks])
    return labels, (points - centres[labels]).square().sum(1)
