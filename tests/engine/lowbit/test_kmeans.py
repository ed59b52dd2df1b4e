"""k-means against the best there is on tiny arrays, and what must hold of every run."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from worker.engine.lowbit.kmeans import SAMPLE, kmeans, lloyd, nearest, seeds


def points(count: int, dimension: int, seed: int) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_squares(values: Tensor, count: int) -> float:
    """The smallest sum of squared distances of numbers to `count` centres: each cluster is an interval, so a dynamic
    programme over where they end finds it (Wang and Song, 2011)."""
    ordered = values.flatten().sort().values.tolist()

    def cost(begin: int, end: int) -> float:
        part = ordered[begin:end]
        mean = sum(part) / len(part)
        return float(sum((value - mean) ** 2 for value in part))

    best = {(0, 0): 0.0}
    for clusters, end in itertools.product(range(1, count + 1), range(1, len(ordered) + 1)):
        choices = [
            best[clusters - 1, begin] + cost(begin, end) for begin in range(end) if (clusters - 1, begin) in best
        ]
        if choices:
            best[clusters, end] = min(choices)
    return best[count, len(ordered)]


def squares(found: tuple[Tensor, Tensor], values: Tensor) -> float:
    return float((values - found[0].double()[found[1]]).square().sum())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_best_of_a_few_seeds_is_the_best_there_is(count: int) -> None:
    values = points(14, 1, seed=count)
    best = least_squares(values, count)
    found = [squares(kmeans(values, count, seed), values) for seed in range(12)]
    assert min(found) == pytest.approx(best, rel=1e-6)
    assert all(each >= best * (1 - 1e-6) for each in found)


@pytest.mark.parametrize("dimension", [1, 3])
def test_every_iteration_loses_no_more_than_the_one_before(dimension: int) -> None:
    values = points(400, dimension, seed=1)
    history = lloyd(values, seeds(values, 16, torch.Generator().manual_seed(0)), 30)[1]
    assert len(history) > 3
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(history))
    assert history[-1] < history[0]


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_nearest_centre_is_found(dimension: int) -> None:
    values, centres = points(200, dimension, seed=2), points(9, dimension, seed=3)
    labels, distances = nearest(values, centres)
    every = torch.cdist(values, centres).square()
    assert torch.equal(labels, every.argmin(1))
    assert torch.allclose(distances, every.min(1).values)


def test_an_empty_cluster_moves_to_the_farthest_point() -> None:
    values = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]]).double()
    centres, _ = lloyd(values, torch.tensor([[0.0], [100.0], [200.0]]).double(), 10)
    assert centres.flatten().sort().values.tolist() == pytest.approx([0.05, 5.05, 9.0])


def test_more_centres_than_different_points_lose_nothing() -> None:
    values = torch.tensor([[1.0], [2.0], [1.0], [2.0]])
    centres, labels = kmeans(values, 4, seed=0)
    assert len(centres) == 4
    assert torch.equal(centres[labels], values)


@pytest.mark.parametrize("count", [100, SAMPLE + 100])
def test_the_same_seed_finds_the_same(count: int) -> None:
    values = points(count, 2, seed=4)
    first, second, third = (kmeans(values, 8, seed) for seed in (5, 5, 6))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])
