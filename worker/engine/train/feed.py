"""Batches on their way to the device, read ahead of the step that takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from worker.engine.data.dataset import Batch

READ_AHEAD = 2
"""Batches, beside those that are being read."""
T = TypeVar("T")


def on_device(
    unread: Iterator[Callable[[], Batch]], device: torch.device, loaders: int = 1
) -> Generator[Batch, None, None]:
    """What `unread` reads, on `device` and in its order, read ahead by so many threads; to a GPU from pinned memory,
    while it computes."""
    if device.type == "cuda":
        unread = (partial(_pinned, read) for read in unread)
    for batch in read_ahead(unread, loaders):
        yield batch.to(device)


def read_ahead(unread: Iterator[Callable[[], T]], loaders: int = 1) -> Generator[T, None, None]:
    """What each of `unread` returns, in their order, called by so many threads before it is asked for. What one raises
    is raised here; the threads end with this iterator."""
    torch.get_num_threads()  # Who asks later for the first time is told what a loader was set to.
    # Their tensors are small and many: one thread each, as torch's own loaders have.
    with ThreadPoolExecutor(loaders, "loader", torch.set_num_threads, (1,)) as threads:
        ahead = deque(threads.submit(read) for read in islice(unread, loaders + READ_AHEAD))
        try:
            while ahead:
                item = ahead.popleft().result()
                ahead.extend(threads.submit(read) for read in islice(unread, 1))
                yield item
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _pinned(read: Callable[[], Batch]) -> Batch:
    batch = read()
    labels = None if batch.labels is None else batch.labels.pin_memory()
    return replace(batch, inputs=tuple(value.pin_memory() for value in batch.inputs), labels=labels)
