"""Batches on their way to the device, read ahead of the step that takes them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from worker.engine.data.dataset import Batch

READ_AHEAD = 2
"""Batches."""
T = TypeVar("T")


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on `device`, read ahead by a thread of their own; to a GPU from pinned memory, while it
    computes."""
    for batch in read_ahead(map(_pinned, batches) if device.type == "cuda" else batches):
        yield batch.to(device)


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """`items`, of which a thread takes up to `READ_AHEAD` before they are asked for. What it raises is raised here;
    it ends with this iterator."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(READ_AHEAD)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                break

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if closed.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # It is raised where the items are asked for.
            put(None, error)

    reader = threading.Thread(target=work, name="read-ahead", daemon=True)
    reader.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        closed.set()
        reader.join()


def _pinned(batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.pin_memory()
    return replace(batch, inputs=tuple(value.pin_memory() for value in batch.inputs), labels=labels)
