"""Chunks are what the library makes of them, through all its filters; damaged ones are refused."""

from __future__ import annotations

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
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_chunks_are_those_of_the_library(tmp_path: Path, dtype: str, storage: dict[str, Any], libver: str) -> None:
    """Numbers that repeat and numbers that do not, which a filter may leave as they are."""
    with h5py.File(tmp_path / "data", "w", libver=libver) as file:
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
    low, high = found & 0xFFFF, found >> 16
    assert (low % 0xFFFF, high % 0xFFFF) == (first % 0xFFFF, second % 0xFFFF)
    assert (low == 0, high == 0) == (first == 0, second == 0), "no zero of ones' complement but of nothing"


def failure_of(path: Path) -> Failure | None:
    try:
        assert read_hdf5(path)["x"].shape == (12, 4)
    except Failure as failure:
        return failure
    return None


@pytest.mark.parametrize("storage", STORED, ids=str)
def test_a_damaged_chunk_is_read_or_refused(tmp_path: Path, storage: dict[str, Any]) -> None:
    """Never more than that; a checksum notices every change."""
    path = tmp_path / "data"
    with h5py.File(path, "w") as file:
        values = NUMBERS.integers(0, 9, (12, 4)).astype(np.float32)
        dataset = file.create_dataset("x", data=values, chunks=(12, 4), **storage)
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


@pytest.mark.parametrize(("order", "is_right"), [("0123", True), ("1032", True), ("3210", False), ("2301", False)])
def test_a_checksum_is_right_in_the_orders_in_which_the_library_takes_it(
    tmp_path: Path, order: str, is_right: bool
) -> None:
    values = NUMBERS.integers(0, 9, (12, 4)).astype(np.float32)
    checksum = fletcher32(values.tobytes()).to_bytes(4, "little")
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = file.create_dataset("x", values.shape, "f4", chunks=values.shape, fletcher32=True)
        dataset.id.write_direct_chunk((0, 0), values.tobytes() + bytes(checksum[int(place)] for place in order))
    with h5py.File(tmp_path / "data") as file:
        if is_right:
            np.testing.assert_array_equal(file["x"][...], values)
        else:
            with pytest.raises(OSError, match="filter"):
                file["x"][...]
    failure = failure_of(tmp_path / "data")
    assert (failure is None) == is_right


def test_large_chunks_of_many_samples_lie_in_a_scratch_file(tmp_path: Path) -> None:
    """As h5py chooses chunks by itself where the number of samples is open: few columns of many samples."""
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = file.create_dataset("x", (4000, 3, 40, 40), "f4", chunks=(2000, 1, 5, 5))
        dataset[...] = (np.arange(4000) // 500 * 500)[:, None, None, None]
    found = read_hdf5(tmp_path / "data")["x"]
    assert isinstance(found, np.memmap)
    assert [float(found[row].min()) for row in range(0, 4000, 500)] == list(range(0, 4000, 500))
    assert not found.flags.writeable


def test_many_names_of_one_array_and_many_chunks_of_nothing_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "links", "w") as file:
        file.create_dataset("x", data=np.zeros((1 << 20, 3), np.float32), compression="gzip")
        for number in range(50):
            file[f"x{number}"] = file["x"]
    with h5py.File(tmp_path / "nothing", "w") as file:
        file.create_dataset("x", (1 << 25,), "u1", chunks=(1,))
    for name in ("links", "nothing"):
        with pytest.raises(Failure, match="times, more than 20") as caught:
            read_hdf5(tmp_path / name)
        assert caught.value.code is Code.DATASET_BAD


def test_a_chunk_that_says_it_is_longer_than_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = file.create_dataset("x", data=np.ones((12, 4), np.float32), chunks=(12, 4), compression="gzip")
        size = dataset.id.get_chunk_info(0).size
    content = bytearray((tmp_path / "data").read_bytes())
    key = content.index(b"TREE\x01") + 24  # of the first chunk: its size, then the mask of filters
    assert int.from_bytes(content[key : key + 4], "little") == size
    content[key : key + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "data").write_bytes(content)
    failure = failure_of(tmp_path / "data")
    assert failure is not None
    assert failure.code is Code.BAD_ARCHIVE


def test_numbers_in_the_header_and_numbers_of_their_own_form_are_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(4, 3)
    header = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    header.set_layout(h5py.h5d.COMPACT)
    twelve_bits = h5py.h5t.STD_U16LE.copy()
    twelve_bits.set_precision(12)
    wide_bool = h5py.h5t.enum_create(h5py.h5t.STD_U8LE)
    wide_bool.enum_insert(b"FALSE", 0)
    wide_bool.enum_insert(b"TRUE", 1)
    with h5py.File(tmp_path / "data", "w") as file:
        space = h5py.h5s.create_simple(values.shape)
        for name, kind, properties, written, written_as in (
            (b"header", h5py.h5t.STD_U16LE, header, values, None),
            (b"twelve", twelve_bits, None, values, None),
            (b"wide", wide_bool, None, (values % 2).astype("u1"), wide_bool),
        ):
            made = h5py.h5d.create(file.id, name, kind, space, properties)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, written, written_as)
        expected = {name: file[name][...] for name in file}
    found = read_hdf5(tmp_path / "data")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
