"""Each method of choosing a range against its formula, written out slowly, on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import fx, nn

from worker.engine.graph.integer import activation_grid, round_trip
from worker.engine.quantize.histogram import BINS, Histogram, count, observe_histograms
from worker.engine.quantize.ranges import (
    clipped_divergence,
    entropy_threshold,
    least_squares_range,
    narrow,
    percentile_range,
    squared_error,
)


def histogram_of(values: torch.Tensor) -> tuple[Histogram, tuple[float, float]]:
    largest = float(values.abs().max())
    return Histogram(largest, count(values, largest)), (float(values.min()), float(values.max()))


def normal(size: int = 20_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_counting_is_that_of_numpy() -> None:
    values = normal()
    histogram, _ = histogram_of(values)
    expected, edges = np.histogram(values.double().numpy(), 2 * BINS, (-histogram.largest, histogram.largest))
    # An element on an edge, to single precision, may fall on either side of it.
    assert np.abs(histogram.counts - expected).sum() <= 20
    assert histogram.counts.sum() == len(values)
    assert np.allclose(histogram.centres(), (edges[1:] + edges[:-1]) / 2)
    assert histogram.magnitudes().sum() == len(values)


def test_counting_batch_by_batch_is_counting_at_once() -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Tanh()))
    whole = normal(6000).reshape(60, 100)
    values = {node.name: (-4.0, 4.0) for node in graph.graph.nodes if node.op == "call_module"}
    at_once = observe_histograms(graph, values, [(whole,)])
    in_parts = observe_histograms(graph, values, [(part,) for part in torch.split(whole, 7)])
    assert len(at_once) == 2
    for name, histogram in at_once.items():
        assert np.array_equal(histogram.counts, in_parts[name].counts)
        assert histogram.counts.sum() == 6000
        assert histogram.counts.nbytes == 16 * BINS


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("kind", ["both signs", "one sign"])
def test_as_many_elements_are_cut_off_at_either_end_to_the_width_of_a_bin(percentile: float, kind: str) -> None:
    values = normal() if kind == "both signs" else normal().relu()
    histogram, observed = histogram_of(values)
    low, high = percentile_range(histogram, observed, percentile)
    cut, slack = (1 - percentile / 100) / 2, histogram.width * 1.01
    assert (values < low - slack).double().mean() - 1e-9 <= cut <= (values <= low + slack).double().mean() + 1e-9
    assert (values > high + slack).double().mean() - 1e-9 <= cut <= (values >= high - slack).double().mean() + 1e-9
    assert (low, high) != observed


def divergence_by_hand(counts: NDArray[np.float64], bins: int, levels: int) -> float:
    """Migacz, 2017, slide "Pseudocode", a bin at a time."""
    reference = [float(value) for value in counts[:bins]]
    candidate = [0.0] * bins
    for level in range(levels):
        members = [place for place in range(bins) if place * levels // bins == level]
        filled = [place for place in members if reference[place] > 0]
        for place in filled:
            candidate[place] = sum(reference[other] for other in members) / len(filled)
    reference[-1] += float(counts[bins:].sum())
    total, kept = sum(reference), sum(candidate)
    divergence = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0:
            if q == 0:
                return math.inf
            divergence += p / total * math.log(p / total / (q / kept))
    return divergence


@pytest.mark.parametrize("bins", [8, 11, 16, 30])
def test_the_divergence_of_a_threshold_is_the_published_one(bins: int) -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 9, 30).astype(np.float64)
    counts[3] = counts[20:23] = 0
    assert clipped_divergence(counts, bins, 8) == pytest.approx(divergence_by_hand(counts, bins, 8))


def test_outliers_behind_an_empty_bin_lose_everything() -> None:
    counts = np.array([4.0, 3.0, 0.0, 1.0])
    assert clipped_divergence(counts, 3, 2) == math.inf
    assert divergence_by_hand(counts, 3, 2) == math.inf
    assert clipped_divergence(counts, 4, 4) == 0.0


def test_the_threshold_has_the_least_divergence_of_all() -> None:
    values = torch.cat([normal(), torch.tensor([40.0, -55.0])])
    histogram, _ = histogram_of(values)
    counts = histogram.magnitudes().astype(float)
    counts[0] = counts[1]
    tried = {bins: divergence_by_hand(counts, bins, 128) for bins in range(BINS, 127, -64)}
    threshold = entropy_threshold(histogram, one_sided=False)
    assert clipped_divergence(counts, round(threshold / histogram.width), 128) <= min(tried.values())
    assert 3 < threshold < 8


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["both signs", "one sign", "never positive"])
def test_the_least_squares_range_is_the_best_of_the_grid_on_the_elements_themselves(kind: str, symmetric: bool) -> None:
    values = torch.cat([normal(4000), torch.tensor([9.0, -5.0])])
    values = {"both signs": values, "one sign": values.relu(), "never positive": -values.relu()}[kind]
    # Every element in the middle of its bin: the histogram is then all there is to know.
    histogram, _ = histogram_of(values)
    places = np.repeat(np.arange(2 * BINS), histogram.counts)
    elements = torch.from_numpy(histogram.centres()[places])
    observed = (float(values.min()), float(values.max()))

    def error(candidate: tuple[float, float]) -> float:
        return float((elements - round_trip(elements, *activation_grid(*candidate))).square().sum())

    found = least_squares_range(histogram, observed, symmetric=symmetric)
    assert squared_error(histogram, found) == pytest.approx(error(found), rel=1e-9)
    parts = [part / 32 for part in range(1, 33)]
    low, high = min(observed[0], 0.0), max(observed[1], 0.0)
    if symmetric:
        most = max(-low, high)
        tried = [(-128 / 127 * part * most, part * most) if low < 0 else (0.0, part * high) for part in parts]
    else:
        tried = [(a * low, b * high) for a in parts for b in parts] if low < 0 < high else []
        tried = tried or [(part * low, part * high) for part in parts]
    assert error(found) == pytest.approx(min(error(candidate) for candidate in tried), rel=1e-9)
    assert error(found) < error(tried[0])


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_a_symmetric_range_has_its_zero_in_the_middle_or_at_the_end(method: str) -> None:
    for values, zero_point in ((normal() * 3 + 1, 128), (normal().relu(), 0), (-normal().relu(), 128)):
        histogram, observed = histogram_of(values)
        found = narrow(method, observed, histogram, percentile=99.0, symmetric=True)  # type: ignore[arg-type]
        scale, zero = activation_grid(*found)
        assert zero == zero_point
        assert scale * (255 - zero) == pytest.approx(found[1], rel=1e-6)


def test_the_smallest_and_largest_are_covered_whatever_the_histogram_says() -> None:
    histogram, observed = histogram_of(normal())
    assert narrow("minmax", observed, histogram, percentile=99.0, symmetric=False) == observed
    assert narrow("mse", (0.0, 0.0), None, percentile=99.0, symmetric=False) == (0.0, 0.0)
