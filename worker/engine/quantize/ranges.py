"""Which part of the numbers a value took its 256 levels cover: everything, or less and finer.

Every method gives a range that `activation_grid` makes a scale and a zero point of. A symmetric range has zero in the
middle of the integers, at 128, or at 0 where no value is negative (Nagel et al., 2021, section 2.2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worker.engine.graph.integer import LARGEST_ACTIVATION, activation_grid
from worker.engine.quantize.histogram import BINS, Histogram
from worker.engine.quantize.observe import Range

Method = Literal["minmax", "entropy", "percentile", "mse"]

_HALF_LEVELS = 128
_STRIDE = 8
"""Bins between two thresholds that are tried: each is then within half a percent of one of TensorRT's, which tries
every bin and takes eight times as long."""
_SHRINK = [part / 32 for part in range(32, 0, -1)]
"""Parts of each end of the range that the grid search tries."""


def narrow(
    method: Method, observed: Range, histogram: Histogram | None, *, percentile: float, symmetric: bool
) -> Range:
    """The range to cover of a value that lay in `observed`; `minmax`, and a value without histogram, needs none."""
    chosen = observed
    if histogram is not None:
        if method == "entropy":
            threshold = entropy_threshold(histogram, one_sided=observed[0] >= 0 or observed[1] <= 0)
            chosen = max(observed[0], -threshold), min(observed[1], threshold)
        elif method == "percentile":
            chosen = percentile_range(histogram, observed, percentile)
        elif method == "mse":
            return least_squares_range(histogram, observed, symmetric=symmetric)
    return centred(chosen) if symmetric else chosen


def centred(wanted: Range) -> Range:
    """The range around `wanted` whose integer zero is 128 with levels 1 to 255 for what is wanted, or 0 where nothing
    is negative."""
    low, high = wanted
    if low >= 0:
        return 0.0, high
    most = max(-low, high)
    return -most * 128 / 127, most


def percentile_range(histogram: Histogram, observed: Range, percentile: float) -> Range:
    """`percentile` percent of all elements lie inside, as many are cut off at either end; elements of a bin count as
    evenly spread over it."""
    cut = (1 - percentile / 100) / 2
    total = histogram.counts.sum()
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    below = np.concatenate([[0], np.cumsum(histogram.counts)]) / total
    # Where bins are empty `below` stands still: the inner end of such a stretch is taken, from either side.
    last = np.searchsorted(below, cut, side="right") - 1
    low = edges[last] + (cut - below[last]) / max(below[last + 1] - below[last], 1e-300) * histogram.width
    first = np.searchsorted(below, 1 - cut, side="left")
    high = edges[first] - (below[first] - (1 - cut)) / max(below[first] - below[first - 1], 1e-300) * histogram.width
    return max(observed[0], float(low)), min(observed[1], float(high))


def entropy_threshold(histogram: Histogram, *, one_sided: bool) -> float:
    """The threshold whose quantized distribution of magnitudes loses least information (Migacz, 2017, "8-bit Inference
    with TensorRT"): Kullback-Leibler divergence of the clipped distribution, outliers counted in its last bin, from the
    one with 128 levels (256 for values of one sign), each spread over the bins that are not empty in it.

    The first bin, which has the zeros of a ReLU, counts as the second does, as in NVIDIA's pytorch-quantization: zero
    is a level at any threshold, and would otherwise decide alone.
    """
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]
    levels = _HALF_LEVELS * (2 if one_sided else 1)
    best, threshold = np.inf, BINS
    for bins in range(BINS, levels - 1, -_STRIDE):
        divergence = clipped_divergence(counts, bins, levels)
        if divergence < best:
            best, threshold = divergence, bins
    return threshold * histogram.width


def clipped_divergence(counts: NDArray[np.float64], bins: int, levels: int) -> float:
    """Kullback-Leibler divergence between the first `bins` of `counts`, the rest added to the last of them, and what
    `levels` equal parts of these bins keep of them. Infinite where something is left that no level has."""
    reference = counts[:bins].copy()
    level = np.arange(bins) * levels // bins
    filled = reference > 0
    sums = np.bincount(level, reference, levels)
    members = np.maximum(np.bincount(level, filled, levels), 1)
    quantized = np.where(filled, (sums / members)[level], 0.0)
    reference[-1] += counts[bins:].sum()
    there = reference > 0
    if not there.any() or (quantized[there] <= 0).any():
        return np.inf
    p, q = reference[there] / reference.sum(), quantized[there] / quantized.sum()
    return float((p * np.log(p / q)).sum())


def least_squares_range(histogram: Histogram, observed: Range, *, symmetric: bool) -> Range:
    """The range with the smallest mean squared error of rounding and clipping, of a grid over both ends (Nagel et al.,
    2021, section 3.1; Sakr et al., 2022, find the same minimum of a symmetric range by Newton's method). Elements count
    as lying in the middle of their bins."""
    low, high = min(observed[0], 0.0), max(observed[1], 0.0)
    if symmetric:
        candidates = [centred((low * part, high * part)) for part in _SHRINK]
    else:
        lows = [low * part for part in _SHRINK] if low < 0 else [0.0]
        highs = [high * part for part in _SHRINK] if high > 0 else [0.0]
        candidates = [(a, b) for a in lows for b in highs]
    return min(candidates, key=lambda candidate: squared_error(histogram, candidate))


def squared_error(histogram: Histogram, candidate: Range) -> float:
    """Sum over all elements of the squared difference between them and what the grid of `candidate` makes of them."""
    scale, zero_point = activation_grid(*candidate)
    there = histogram.counts > 0
    centres = histogram.centres()[there]
    rounded = (np.clip(np.round(centres / scale) + zero_point, 0, LARGEST_ACTIVATION) - zero_point) * scale
    return float((histogram.counts[there] * (centres - rounded) ** 2).sum())
