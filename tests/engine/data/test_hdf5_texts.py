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


def test_a_file_behind_a_block_of_its_own_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="another layout") as caught:
        read_hdf5(written(tmp_path / "data", userblock_size=512))
    assert caught.value.code is Code.DATASET_BAD
    assert "dtype='S5'" in caught.value.message


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
