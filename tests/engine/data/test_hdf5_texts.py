"""Texts of any length in HDF5: as the library gives them, in every way it stores them; damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from models.errors import Code, Failure
from worker.engine.data.hdf5 import read_hdf5

TEXTS = ["train", "val", "", "tést", "a text that is cut after 32 characters", "x" * 5000] * 300


def written(path: Path, libver: str = "earliest", userblock_size: int = 0, **storage: Any) -> Path:
    with h5py.File(path, "w", libver=libver, userblock_size=userblock_size) as file:
        file["x"] = np.zeros((len(TEXTS), 2), np.float32)
        file.create_dataset("split", data=TEXTS, dtype=h5py.string_dtype(), **storage)
    return path


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "storage",
    [{}, {"chunks": (7,)}, {"chunks": (1000,), "maxshape": (None,)}, {"compression": "gzip", "shuffle": True}],
)
def test_texts_are_those_of_the_library(tmp_path: Path, libver: str, storage: dict[str, Any]) -> None:
    path = written(tmp_path / "data", libver, **storage)
    with h5py.File(path) as file:
        expected = [text[:32] for text in file["split"].asstr()[:]]
    assert read_hdf5(path)["split"].tolist() == expected


def test_what_was_never_written_is_empty(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data", "w") as file:
        file.create_dataset("split", (20,), h5py.string_dtype(), chunks=(7,))[:7] = ["val"] * 7
    assert read_hdf5(tmp_path / "data")["split"].tolist() == ["val"] * 7 + [""] * 13


def test_a_file_behind_a_block_of_its_own_is_read_too(tmp_path: Path) -> None:
    found = read_hdf5(written(tmp_path / "data", userblock_size=512))
    assert found["split"].tolist()[:3] == TEXTS[:3]
    assert found["x"].shape == (len(TEXTS), 2)


def test_a_file_with_addresses_of_another_size_is_refused_with_what_to_do(tmp_path: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_sizes(4, 4)
    with h5py.File(h5py.h5f.create(bytes(tmp_path / "data"), fcpl=creation)) as file:
        file["split"] = TEXTS
    with pytest.raises(Failure, match="dtype='S5'") as caught:
        read_hdf5(tmp_path / "data")
    assert caught.value.code is Code.DATASET_BAD


def test_texts_in_a_header_are_refused_before_the_library_follows_them(tmp_path: Path) -> None:
    header = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    header.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
    with h5py.File(tmp_path / "data", "w") as file:
        made = h5py.h5d.create(file.id, b"split", kind, h5py.h5s.create_simple((2,)), header)
        h5py.Dataset(made)[...] = ["train", "val"]
    with pytest.raises(Failure, match="dtype='S5'") as caught:
        read_hdf5(tmp_path / "data")
    assert caught.value.code is Code.DATASET_BAD


@pytest.mark.parametrize(
    ("padding", "stored"), [(h5py.h5t.STR_NULLTERM, b"val\0xxx\0"), (h5py.h5t.STR_SPACEPAD, b"val     ")]
)
def test_texts_of_one_length_end_where_their_kind_says(tmp_path: Path, padding: int, stored: bytes) -> None:
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(8)
    kind.set_strpad(padding)
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = h5py.h5d.create(file.id, b"split", kind, h5py.h5s.create_simple((2,)))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([stored, stored], "S8"), kind)
    assert read_hdf5(tmp_path / "data")["split"].tolist() == ["val", "val"]


def test_texts_of_one_length_may_be_the_fill_value_and_compress_well(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data", "w") as file:
        dataset = file.create_dataset("split", (4_000_000,), "S5", compression="gzip", fillvalue=b"train")
        dataset[:3_000_000] = b"val"
        few = file.create_dataset("y", (20,), "i4", chunks=(7,), fillvalue=-3)
        few[7:14] = 5
    found = read_hdf5(tmp_path / "data")
    assert {text: int((found["split"] == text).sum()) for text in ("val", "train")} == {
        "val": 3 * 10**6,
        "train": 10**6,
    }
    assert found["y"].tolist() == [-3] * 7 + [5] * 7 + [-3] * 6


def test_heaps_that_overlap_are_refused_in_the_time_of_one(tmp_path: Path) -> None:
    """Each collection is said to reach from its own place to the end of all."""
    path = written(tmp_path / "data")
    content = bytearray(path.read_bytes())
    first, last = content.index(b"GCOL"), content.rindex(b"GCOL")
    assert first != last
    content[first + 8 : first + 16] = (len(content) - first).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(Failure, match="heap") as caught:
        read_hdf5(path)
    assert caught.value.code is Code.BAD_ARCHIVE


@pytest.mark.parametrize("missing", [b"GCOL", b"train\0\0\0"])
def test_a_damaged_heap_is_a_broken_file(tmp_path: Path, missing: bytes) -> None:
    """Without its signature; and with the text's own bytes where the next object's header should be."""
    path = written(tmp_path / "data")
    content = path.read_bytes()
    place = content.index(missing) + (len(missing) if missing != b"GCOL" else 0)
    path.write_bytes(content[:place] + b"\xff" * 16 + content[place + 16 :])
    with pytest.raises(Failure, match="heap of texts") as caught:
        read_hdf5(path)
    assert caught.value.code is Code.BAD_ARCHIVE
