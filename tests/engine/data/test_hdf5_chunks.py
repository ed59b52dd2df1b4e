"""Chunks are what the library makes of them, through all its filters; damaged ones are refused."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from models.errors import Code, Failure
from worker.engine.data.hdf5 import read_hdf5
from worker.engine.data.hdf5_chunks import fletcher32

NUMBERS = np.random.default_rng(0)
SHAPES = [((23, 5, 6), (7, 2, 4)), ((40,), (40,)), ((100, 3), (1, 3)), ((5, 4), (9, 9))]
STORED = [
    {"compression": compression, "shuffle": shuffle, "fletcher32": fletcher}
    for compression, shuffle, fletcher in product([None, "gzip", "lzf"], [False, True], [False, True])
]


@pytest.mark.parametrize("storage", STORED, ids=str)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|u1", "?", "<f2"])
def test_chunks_are_those_of_the_library(tmp_path: Path, dtype: str, storage: dict[str, Any]) -> None:
    """Numbers that repeat and numbers that do not, which a filter may leave as they are."""
    with h5py.File(tmp_path / "data", "w") as file:
        for index, (shape, chunk) in enumerate(SHAPES):
            for kind, high in (("few", 3), ("many", 100)):
                values = NUMBERS.integers(0, high, shape).astype(dtype)
                bound = tuple(max(pair) for pair in zip(shape, chunk, strict=True))
                file.create_dataset(f"{kind}{index}", data=values, chunks=chunk, maxshape=bound, **storage)
        expected = {name: file[name][...] for name in file}
    found = read_hdf5(tmp_path / "data")
    for name, values in expected.items():
        assert found[name].dtype == values.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], values)


def test_what_was_never_written_has_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data", "w") as file:
        file.create_dataset("x", (20, 3), "f4", chunks=(7, 2), fillvalue=2.5)[3:9, :2] = 1
        expected = file["x"][...]
    np.testing.assert_array_equal(read_hdf5(tmp_path / "data")["x"], expected)


def test_incompressible_chunks_through_lzf_and_long_repetitions(tmp_path: Path) -> None:
    arrays = {
        "noise": NUMBERS.integers(0, 256, 5000).astype(np.uint8),
        "zeros": np.zeros(5000, np.uint8),
        "periods": np.tile(np.arange(300) % 251, 20).astype(np.uint8),
    }
    with h5py.File(tmp_path / "data", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, chunks=(5000,), maxshape=(6000,), compression="lzf")
    found = read_hdf5(tmp_path / "data")
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 2 * 65536 + 5, 400_000])
def test_the_checksum_is_fletchers(size: int) -> None:
    content = NUMBERS.integers(0, 256, size).astype(np.uint8).tobytes()
    first = second = 0
    for start in range(0, size, 2):
        first += int.from_bytes(content[start : start + 2].ljust(2, b"\0"), "big")
        second += first
    found = fletcher32(content)
    assert (found & 0xFFFF) % 0xFFFF == first % 0xFFFF
    assert (found >> 16) % 0xFFFF == second % 0xFFFF


def failure_of(path: Path) -> Failure | None:
    try:
        assert read_hdf5(path)["x"].shape == (50, 4)
    except Failure as failure:
        return failure
    return None


@pytest.mark.parametrize("storage", STORED, ids=str)
def test_a_damaged_chunk_is_read_or_refused(tmp_path: Path, storage: dict[str, Any]) -> None:
    """Never more than that; a checksum notices every change."""
    path = tmp_path / "data"
    with h5py.File(path, "w") as file:
        values = NUMBERS.integers(0, 9, (50, 4)).astype(np.float32)
        dataset = file.create_dataset("x", data=values, chunks=(50, 4), **storage)
        chunk = dataset.id.get_chunk_info(0)
    honest = path.read_bytes()
    refused = 0
    for place in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        path.write_bytes(honest[:place] + bytes([honest[place] ^ 0x41]) + honest[place + 1 :])
        if (failure := failure_of(path)) is not None:
            assert failure.code is Code.BAD_ARCHIVE
            refused += 1
    if storage["fletcher32"]:
        assert refused == chunk.size


def test_chunks_over_too_many_samples_are_refused(tmp_path: Path) -> None:
    rows = math.ceil(2**30 / 40_000) + 1
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = file.create_dataset("x", (rows, 10_000), "f4", chunks=(rows, 100))
        dataset[:, :600] = 1
    with pytest.raises(Failure, match="fewer samples"):
        read_hdf5(tmp_path / "data")
