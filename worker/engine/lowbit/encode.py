"""From a weight to its codes and tables, the way each scheme has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.lowbit_policy import Coding
from worker.engine.graph.coded import Coded, on_grid
from worker.engine.lowbit.kmeans import kmeans, nearest

CLIPS = tuple(1.0 - 0.05 * step for step in range(13))
"""Shares of a group's largest magnitude at which the integers may end, of which the one that loses least is taken."""
TERNARY_THRESHOLD = 0.7
"""Times the mean magnitude (Li and Liu, 2016, section 2.3)."""
_HALF_EXPONENT = 15
"""The largest scale of a weight lies below 2 to this power of its unit, so that half precision reaches far down."""
_SMALLEST = 1e-20


class Grid:
    """How weights of `shape` become codes of a grid, now and again while training moves them.

    `clips` is the share of its extremes that each group's integers span, decided once by `fit`."""

    def __init__(self, coding: Coding, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        own = coding.group_size if coding.scheme == "integers" and coding.group_size else self.columns
        self.group = min(own, self.columns)
        self.coding = coding
        self.levels = {"ternary": 3, "binary": 2}.get(coding.scheme, 1 << coding.bits)
        self.spacing = 2 if coding.scheme == "binary" else 1
        centred = {"ternary": 1, "binary": 1, "integers": self.levels // 2 if coding.symmetric else 0}
        self.offset = centred[coding.scheme]

    def fit(self, weight: Tensor) -> Tensor:
        """The `clips` that lose least (mean square), or all 1."""
        groups = self._groups(weight)
        best = torch.ones_like(groups[..., 0])
        if self.coding.scheme != "integers" or self.coding.range == "minmax":
            return best
        least = torch.full_like(best, torch.inf)
        for clip in CLIPS:
            clips = torch.full_like(best, clip)
            loss = (self._groups(self.rounded(weight, clips)) - groups).square().sum(-1)
            best, least = torch.where(loss < least, clips, best), torch.minimum(loss, least)
        return best

    def rounded(self, weight: Tensor, clips: Tensor) -> Tensor:
        """What is left of `weight` once it has been stored so: bit for bit the values of `encode`."""
        codes, scale, unit, zero = self._parts(weight, clips)
        return on_grid(codes, scale.float() * unit, zero, self.shape, self.group, self.spacing, self.offset)

    def encode(self, weight: Tensor, clips: Tensor) -> Coded:
        codes, scale, unit, zero = self._parts(weight, clips)
        tables = {"scale": scale, "unit": unit.reshape(1)}
        if zero is not None:
            tables["zero"] = zero.to(torch.uint8)
        tables = {name: table.detach().cpu() for name, table in tables.items()}
        stored = codes.to(torch.uint8).flatten().cpu()
        return Coded(self.shape, self.levels, stored, tables, self.group, self.spacing, self.offset)

    def _parts(self, weight: Tensor, clips: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        weight = weight.detach()
        groups = self._groups(weight)
        zero = None
        if self.coding.scheme == "binary":
            wanted = self._mean(groups.abs())
        elif self.coding.scheme == "ternary":
            wanted, chosen = self._ternary(groups)
        elif self.coding.symmetric:
            wanted = groups.abs().amax(-1) * clips / (self.levels // 2 - 1)
        else:
            low, high = groups.amin(-1).clamp_max(0) * clips, groups.amax(-1).clamp_min(0) * clips
            wanted = (high - low) / (self.levels - 1)
        scale, unit = _halves(wanted)
        step = (scale.float() * unit).unsqueeze(-1)
        if self.coding.scheme == "binary":
            codes = (groups >= 0).to(torch.int32)
        elif self.coding.scheme == "ternary":
            codes = chosen + 1
        else:
            shift = torch.full_like(step, self.offset)
            if not self.coding.symmetric:
                shift = (-low.unsqueeze(-1) / step).round().clamp(0, self.levels - 1)
                zero = shift.flatten()
            codes = ((groups / step).round() + shift).clamp(0, self.levels - 1).to(torch.int32)
        return codes.reshape(self.rows, -1)[:, : self.columns], scale.flatten(), unit, zero

    def _ternary(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Scales, and -1, 0 or 1 for each weight."""
        magnitudes = groups.abs()
        kept = magnitudes > TERNARY_THRESHOLD * self._mean(magnitudes).unsqueeze(-1)
        scale = (magnitudes * kept).sum(-1) / kept.sum(-1).clamp_min(1)
        return scale, (groups.sign() * kept).to(torch.int32)

    def _mean(self, groups: Tensor) -> Tensor:
        return groups.sum(-1) / self.columns

    def _groups(self, weight: Tensor) -> Tensor:
        """[rows, groups, weights of one], the last group filled up with zeros."""
        rows = weight.reshape(self.rows, self.columns)
        return functional.pad(rows, (0, -self.columns % self.group)).reshape(self.rows, -1, self.group)


def _halves(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """`wanted` as half-precision numbers above zero, and the power of two they are to be multiplied by."""
    largest = wanted.max().clamp_min(_SMALLEST)
    unit = largest / torch.frexp(largest).mantissa * 2.0**-_HALF_EXPONENT
    scale = (wanted / unit).to(torch.float16)
    smallest = torch.finfo(torch.float16).smallest_normal
    return scale.clamp_min(smallest), unit


def encode_codebook(weight: Tensor, coding: Coding, seed: int, mask: Tensor | None) -> Coded:
    """By k-means over all weights in the order they are stored, `dimension` side by side, zeros filling up the last.

    With a mask (true where a weight may be anything; dimension 1) entry 0 is zero, and what is masked is there."""
    shape = tuple(weight.shape)
    flat = weight.detach().cpu().float().flatten()
    dimension = coding.dimension
    points = functional.pad(flat, (0, -flat.numel() % dimension)).reshape(-1, dimension)
    count = min(1 << coding.bits, len(points))
    if mask is None:
        table, labels = kmeans(points, count, seed)
    else:
        free = points[mask.flatten().cpu()]
        found = kmeans(free, min(count - 1, len(free)), seed)[0] if count > 1 and len(free) else points[:0]
        table = functional.pad(found, (0, 0, 1, count - 1 - len(found)))
        labels = torch.where(mask.flatten().cpu(), nearest(points.double(), table.double())[0], 0)
    return Coded(shape, 1 << coding.bits, labels.to(torch.uint8), {"codebook": table.contiguous()})
