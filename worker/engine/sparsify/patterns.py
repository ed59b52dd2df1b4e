"""Which weights of a matrix stand or fall together, and which of them go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.spec_sparsify import Blocks, NOfM, Pattern


def misfit(pattern: Pattern, outputs: int, inputs: int, neighbours: int) -> str | None:
    """Why matrices of this size cannot have the pattern; `None` when they can."""
    if isinstance(pattern, NOfM) and neighbours % pattern.n_of_m[1]:
        return f"{neighbours} inputs are no multiple of {pattern.n_of_m[1]}"
    if isinstance(pattern, Blocks):
        rows, columns = pattern.block
        if outputs % rows:
            return f"{outputs} outputs are no multiple of {rows}"
        if inputs % columns:
            return f"{inputs} inputs are no multiple of {columns}"
    return None


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """A mask in the shape of `scores` [..., inputs]: of every `m` neighbours the `n` with the largest scores stay, of
    equal ones the first (Mishra et al., 2021; Zhou et al., 2021)."""
    groups = scores.reshape(*scores.shape[:-1], -1, m)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)


def block_scores(scores: Tensor, rows: int, columns: int) -> Tensor:
    """[positions, outputs, inputs] to one score a block, the mean: [positions, outputs / rows, inputs / columns]."""
    positions, outputs, inputs = scores.shape
    return scores.reshape(positions, outputs // rows, rows, inputs // columns, columns).mean((2, 4))


def spread(blocks: Tensor, rows: int, columns: int) -> Tensor:
    """What was said of each block, said of each of its weights."""
    return blocks.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def smallest(scores: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """Masks of the tensors ranked as one: the nearest count to `fraction` of all units goes, those with the smallest
    scores, of equal ones the first. The best unit of each tensor stays, so none is emptied."""
    flat = torch.cat([_guarded(tensor) for tensor in scores])
    count = min(round(fraction * len(flat)), len(flat) - len(scores))
    stays = torch.ones(len(flat), dtype=torch.bool)
    if count > 0:
        limit = flat.kthvalue(count).values
        stays = flat > limit
        spare = len(flat) - count - int(stays.sum())
        equal = (flat == limit).nonzero().flatten()
        stays[equal[len(equal) - spare :]] = True
    parts = torch.split(stays, [tensor.numel() for tensor in scores])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, scores, strict=True)]


def below(scores: Tensor, threshold: float) -> Tensor:
    """A mask without the scores below `threshold`; the best stays whatever it is."""
    return _guarded(scores).reshape(scores.shape) >= threshold


def _guarded(scores: Tensor) -> Tensor:
    """Flat, with the largest raised beyond every rank."""
    flat = scores.flatten().clone()
    flat[flat.argmax()] = torch.inf
    return flat
