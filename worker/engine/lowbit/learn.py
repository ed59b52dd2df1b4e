"""Weights of few bits that learn: what stands in for a layer's weight while the network is trained.

Integers, ternary and binary weights keep a latent weight in single precision; the network computes with what is left of
it in few bits, and the gradient goes straight through to it (Bengio et al., 2013). Of a codebook the entries learn, and
which weight has which entry stays (Han et al., 2016). The training loop sees parameters like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.lowbit_policy import Coding
from worker.engine.graph.coded import Coded, entries
from worker.engine.lowbit.encode import Grid, encode_codebook


class _StraightThrough(torch.autograd.Function):
    """What is computed with is the second; the gradient is the first's."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class GridWeight(nn.Module):
    """`clips` stay as they were fitted to the weight from before training; scales follow the latent weight."""

    clips: Tensor

    def __init__(self, weight: Tensor, coding: Coding) -> None:
        super().__init__()
        self._grid = Grid(coding, tuple(weight.shape))
        self.latent = nn.Parameter(weight.detach().clone())
        self.register_buffer("clips", self._grid.fit(weight.detach()))

    def forward(self) -> Tensor:
        rounded = self._grid.rounded(self.latent.detach(), self.clips)
        found: Tensor = _StraightThrough.apply(self.latent, rounded)  # type: ignore[no-untyped-call]
        return found

    def coded(self) -> Coded:
        return self._grid.encode(self.latent.detach(), self.clips)

    def as_record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `source_of` makes it of again, as JSON and as tensors; without what it has learnt."""
        return {"coding": asdict(self._grid.coding)}, {}

    def masks(self, mask: Tensor) -> dict[str, Tensor]:
        """What must stay zero so that what `mask` says of the weight does: zero is on every grid but the binary one."""
        return {"latent": mask}


class CodebookWeight(nn.Module):
    codes: Tensor

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self._coded = coded
        self.codebook = nn.Parameter(coded.tables["codebook"].clone())
        self.register_buffer("codes", coded.codes.clone())

    def forward(self) -> Tensor:
        return entries(self.codes, self.codebook, self._coded.shape)

    def coded(self) -> Coded:
        tables = {"codebook": self.codebook.detach().cpu().clone()}
        return replace(self._coded, codes=self.codes.cpu(), tables=tables)

    def as_record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return self._coded.settings(), self._coded.tensors()

    def masks(self, mask: Tensor) -> dict[str, Tensor]:
        """Entry 0 is the zero of what is masked."""
        stays = torch.ones_like(self.codebook, dtype=torch.bool)
        stays[0] = False
        return {"codebook": stays}


Source = GridWeight | CodebookWeight


def learning(weight: Tensor, coding: Coding, seed: int, mask: Tensor | None) -> Source:
    if coding.scheme == "codebook":
        return CodebookWeight(encode_codebook(weight, coding, seed, mask)).to(weight.device)
    return GridWeight(weight, coding)


def source_of(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor) -> Source:
    """What `as_record` was asked of, before it learnt; `weight` has the shape of what it makes."""
    if "coding" in settings:
        return GridWeight(weight, Coding(**settings["coding"]))
    return CodebookWeight(Coded.of(settings, tensors))
