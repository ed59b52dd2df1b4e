"""Arrays that grow block by block and may outgrow memory: what no file holds as plain rows is written out once."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from worker.engine.data.npy import Array
from worker.engine.failures import as_failure

IN_MEMORY_BYTES = 32 << 20


@contextmanager
def scratch() -> Iterator[None]:
    """Around writing to the scratch folder: a disk that is full then is no fault of the file that is read.

    Raises Failure(DISK_FULL), INTERNAL for other errors of the system.
    """
    try:
        yield
    except OSError as error:
        raise as_failure(error) from error


def mapped_scratch(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Zeros to write to, in a file of the scratch folder, which goes with the array. Raises as `scratch` does."""
    with scratch():
        file = tempfile.NamedTemporaryFile(prefix="modelpress-data-")  # noqa: SIM115
        os.posix_fallocate(file.fileno(), 0, prod(shape) * dtype.itemsize)  # else a full disk is a signal, later
    mapped: Array = np.memmap(file.name, dtype, "r+", shape=shape)
    weakref.finalize(mapped, file.close)
    return mapped


class Spool:
    """Rows of one shape and dtype, appended in blocks; beyond 32 MiB they lie in a file of the scratch folder (TMPDIR),
    which goes with the array."""

    def __init__(self, dtype: np.dtype[Any], sample_shape: tuple[int, ...]) -> None:
        self.dtype, self.sample_shape = dtype.newbyteorder("="), sample_shape
        self._blocks: list[Array] = []
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._rows = self._waiting_bytes = 0

    def append(self, rows: Array) -> None:
        """`rows` [any, *sample_shape] of the dtype; they are copied."""
        block = np.array(rows, dtype=self.dtype, order="C")
        if block.shape[1:] != self.sample_shape:
            raise ValueError(f"rows are {block.shape[1:]}, not {self.sample_shape}")
        self._blocks.append(block)
        self._rows += len(block)
        self._waiting_bytes += block.nbytes
        if self._waiting_bytes > IN_MEMORY_BYTES:
            self._write()

    def array(self) -> Array:
        """All rows, read-only; nothing may be appended afterwards."""
        shape = (self._rows, *self.sample_shape)
        if self._file is None:
            result: Array = np.concatenate([np.empty((0, *self.sample_shape), self.dtype), *self._blocks])
            self._blocks.clear()
            result.flags.writeable = False
            return result
        self._write()
        mapped: Array = np.memmap(self._file.name, dtype=self.dtype, mode="r", shape=shape)
        weakref.finalize(mapped, self._file.close)
        return mapped

    def _write(self) -> None:
        with scratch():
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(prefix="modelpress-data-")  # noqa: SIM115
            for block in self._blocks:
                self._file.write(block.data)
            self._file.flush()
        self._blocks.clear()
        self._waiting_bytes = 0
