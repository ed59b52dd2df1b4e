"""The processes that train one network together, as one of them sees it: whose sample is whose, and what they add up.

All run the same program with the same seed. Of every batch each computes a slice; the gradients are added up, and
everybody takes the same step. What depends on a clock or a measurement is decided by the first, which alone speaks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")
BUCKET_BYTES = 32 << 20
"""So much is added up at a time: a copy of it is needed."""


class Parted(RuntimeError):
    """An exchange broke off: another process is gone, or has said nothing for too long."""


@dataclass(frozen=True)
class Part:
    """Samples `start` to `stop` of a batch of `whole`: what one process computes of it. `copies`: so many compute the
    same, each for that share of the sum."""

    start: int
    stop: int
    whole: int
    copies: int = 1

    @property
    def share(self) -> float:
        """Of the batch's mean."""
        return (self.stop - self.start) / self.whole / self.copies


class Team:
    """Number `rank` of `size`; the first is 0. One process alone is a team as well, and then nothing here costs.

    Larger ones need torch's default process group, with the backend gloo for tensors in memory. Gradients travel as
    `gradients`, or as they are.
    """

    def __init__(self, rank: int = 0, size: int = 1, gradients: torch.dtype | None = None) -> None:
        self.rank, self.size, self.gradients = rank, size, gradients
        self.part: Part | None = None
        """Of the batch under way; None between batches and where each looks at samples of its own."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> float:
        return 1.0 if self.part is None else self.part.share

    @property
    def divides(self) -> bool:
        """Whether the batch under way is divided."""
        return self.part is not None and self.part.stop - self.part.start < self.part.whole

    def part_of(self, count: int) -> Part:
        """As even as can be. A batch with fewer samples than there are processes is computed whole by each."""
        if count < self.size:
            return Part(0, count, count, self.size)
        return Part(count * self.rank // self.size, count * (self.rank + 1) // self.size, count)

    @contextmanager
    def computing(self, part: Part, seed: int, device: torch.device) -> Iterator[None]:
        """Inside the block the batch under way is that of `part`, and random numbers are this process's own, by `seed`;
        those of a batch that each computes whole are the same."""
        if self.size == 1:
            yield
            return
        own = seed * self.size + (self.rank if part.copies == 1 else 0)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(own % 2**63)
            self.part = part
            try:
                yield
            finally:
                self.part = None

    def agree(self, decide: Callable[[], T]) -> T:
        """What `decide` says in the first process: JSON, for all."""
        if self.size == 1:
            return decide()
        said = json.dumps(decide()).encode() if self.leads else b""
        length = torch.tensor([len(said)])
        _exchange(dist.broadcast, length, 0)
        data = torch.tensor(list(said) if self.leads else [0] * int(length), dtype=torch.uint8)
        _exchange(dist.broadcast, data, 0)
        agreed: T = json.loads(bytes(data.tolist()))
        return agreed

    def add_up(self, tensors: Sequence[Tensor], sent_as: torch.dtype | None = None) -> None:
        """Make each tensor the sum of those of all processes, in place; the same bits in every one. Each, and every
        partial sum, is rounded to `sent_as` if that is given."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1).to(sent_as or tensor.dtype) for tensor in bucket])
            _exchange(dist.all_reduce, flat)
            for tensor, total in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def add_up_step(self, gradients: Sequence[Tensor], loss: Tensor) -> None:
        """`add_up` of both, the gradients as they travel, the loss as it is."""
        if self.gradients is None:  # In one exchange: each has its latency.
            self.add_up([*gradients, loss])
        else:
            self.add_up(gradients, self.gradients)
            self.add_up([loss])

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes; gradients that reach it are added up as well."""
        result: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
        return result

    def share_of(self, counted: Tensor) -> Tensor | float:
        """Of what the loss is a mean over, the share that this process has: `counted` of it lie in its part."""
        if self.part is None:
            return 1.0
        total = counted.detach().float().clone()
        _exchange(dist.all_reduce, total)
        return counted / total.clamp_min(1.0)

    def gathered(self, own: Tensor) -> Tensor:
        """The rows of all parts of the batch under way, in its order; a gradient reaches `own` alone."""
        assert self.part is not None
        if not self.divides:
            return own
        parts = [Team(rank, self.size).part_of(self.part.whole) for rank in range(self.size)]
        longest = max(part.stop - part.start for part in parts)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in parts]
        _exchange(dist.all_gather, found, padded)
        rows = [value[: part.stop - part.start] for value, part in zip(found, parts, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)


ALONE = Team()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        _exchange(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        _exchange(dist.all_reduce, total)
        return total


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise Parted(str(error)) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Of one type each, and of `BUCKET_BYTES` or one tensor."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket
