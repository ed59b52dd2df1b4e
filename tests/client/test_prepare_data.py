"""Loaders and arrays to `.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from modelpress import PrepareError, prepare_data


def _read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _loader(samples: int = 10, batch: int = 4) -> DataLoader[Any]:
    x = torch.arange(samples * 6, dtype=torch.float32).reshape(samples, 2, 3)
    return DataLoader(TensorDataset(x, torch.arange(samples) % 3), batch_size=batch)


def test_a_loader_becomes_x_and_y_stored_uncompressed(tmp_path: Path) -> None:
    path = prepare_data(_loader(), tmp_path / "data.npz")
    arrays = _read(path)
    assert set(arrays) == {"x", "y"}
    assert arrays["x"].shape == (10, 2, 3)
    assert arrays["x"].dtype == np.float32
    assert arrays["y"].tolist() == [i % 3 for i in range(10)]
    with zipfile.ZipFile(path) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]


def test_limit_stops_reading_the_loader(tmp_path: Path) -> None:
    taken = []

    def batches() -> Any:
        for batch in _loader():
            taken.append(len(batch[0]))
            yield batch

    arrays = _read(prepare_data(batches(), tmp_path / "data.npz", limit=5))
    assert len(arrays["x"]) == len(arrays["y"]) == 5
    assert taken == [4, 4]


def test_loaders_by_split_keep_the_split(tmp_path: Path) -> None:
    source = {"train": _loader(8), "val": _loader(3), "test": _loader(2)}
    arrays = _read(prepare_data(source, tmp_path / "data"))
    assert arrays["split"].tolist() == ["train"] * 8 + ["val"] * 3 + ["test"] * 2
    assert len(arrays["x"]) == len(arrays["y"]) == 13


def test_several_inputs_are_numbered_and_mappings_keep_their_names(tmp_path: Path) -> None:
    left, right, y = np.zeros((4, 2)), np.ones((4, 3), np.int64), np.arange(4)
    assert set(_read(prepare_data((left, right, y), tmp_path / "a"))) == {"x0", "x1", "y"}
    assert set(_read(prepare_data((left, right), tmp_path / "b", labels=False))) == {"x0", "x1"}
    batches = [{"input_ids": right[:2], "labels": y[:2]}, {"input_ids": right[2:], "labels": y[2:]}]
    named = _read(prepare_data(batches, tmp_path / "c"))
    assert set(named) == {"input_ids", "y"}
    assert named["y"].tolist() == [0, 1, 2, 3]
    assert set(_read(prepare_data(torch.zeros(4, 2), tmp_path / "d"))) == {"x"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "no batches"),
        ((np.zeros((3, 2)), np.zeros(4)), "one entry a sample"),
        ((np.array([{}, {}]),), "not an array of numbers"),
        ([(np.zeros((2, 3)), np.zeros(2)), (np.zeros((2, 4)), np.zeros(2))], "do not fit together"),
        ({"train": np.zeros((2, 3)), "test": (np.zeros((2, 3)), np.zeros(2))}, "do not hold the same arrays"),
        (3, "takes a DataLoader"),
        (np.zeros((0, 3)), "no samples"),
    ],
)
def test_data_that_cannot_be_written_is_refused_and_leaves_no_file(source: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=said):
        prepare_data(source, tmp_path / "data.npz")
    assert not list(tmp_path.iterdir())
