"""Labels of sequences: read off the input or given, and what of them counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Data
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.labels import IGNORE_INDEX

IDS = TensorInfo(name="input_ids", dtype="int64", shape=[None, 5])
MASK = TensorInfo(name="attention_mask", dtype="int64", shape=[None, 5])
ROWS = np.array([[3, 1, 4, 1, 0], [5, 9, 2, 0, 0], [6, 5, 3, 5, 8]] * 10)


def opened(folder: Path, arrays: dict[str, Any], inputs: tuple[TensorInfo, ...] = (IDS,), **data: Any) -> Dataset:
    np.savez(folder / "data.npz", **arrays)
    return open_dataset(folder / "data.npz", Data(dataset="d", **data), inputs, seed=0)


def labels_of(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    batch = next(dataset.train.batches(100))
    assert batch.labels is not None
    return batch.inputs[0], batch.labels


def test_the_label_of_a_token_is_the_next_one(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"input_ids": ROWS}, task="causal_lm")
    inputs, labels = labels_of(dataset)
    assert torch.equal(labels[:, :-1], inputs[:, 1:])
    assert labels[:, -1].eq(IGNORE_INDEX).all()
    assert (dataset.has_labels, dataset.metric) == (True, "perplexity")


def test_padding_is_told_by_its_token_or_by_the_mask(tmp_path: Path) -> None:
    inputs, labels = labels_of(opened(tmp_path, {"input_ids": ROWS}, task="causal_lm", ignore=0))
    wanted = torch.nn.functional.pad(inputs[:, 1:], (0, 1))
    assert torch.equal(labels, wanted.masked_fill(wanted == 0, IGNORE_INDEX))
    arrays = {"input_ids": ROWS, "attention_mask": (ROWS != 0).astype(np.int64)}
    _, by_mask = labels_of(opened(tmp_path, arrays, (IDS, MASK), task="causal_lm"))
    assert torch.equal(by_mask, labels)


def test_given_labels_of_a_language_model_are_taken_as_they_are(tmp_path: Path) -> None:
    following = np.where(ROWS == 0, -100, ROWS + 1)
    dataset = opened(tmp_path, {"input_ids": ROWS, "y": following}, task="causal_lm")
    inputs, labels = labels_of(dataset)
    assert torch.equal(labels, torch.where(inputs == 0, IGNORE_INDEX, inputs + 1))
    assert (dataset.class_count, dataset.positions) == (11, 5)


def test_rows_of_many_classes_suggest_tags(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"input_ids": ROWS, "y": np.where(ROWS == 0, -100, ROWS % 4)})
    assert (dataset.task, dataset.metric, dataset.class_count, dataset.positions) == ("tagging", "accuracy", 4, 5)
    dataset.check_output(TensorInfo(name="tags", dtype="float32", shape=[None, 5, 4]))
    dataset.check_output(TensorInfo(name="tags", dtype="float32", shape=[None, 4, 5]))
    with pytest.raises(Failure, match=r"4 classes.*'tags' has 3"):
        dataset.check_output(TensorInfo(name="tags", dtype="float32", shape=[None, 5, 3]))


def test_embeddings_need_no_labels(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"input_ids": ROWS}, task="embedding")
    assert (dataset.task, dataset.has_labels, dataset.metric) == ("embedding", False, "agreement")
    labelled = opened(tmp_path, {"input_ids": ROWS, "y": np.arange(30) % 5}, task="embedding")
    assert (labelled.has_labels, labelled.metric) == (True, "recall_at_1")
    counts = torch.bincount(labels_of(labelled)[1])
    assert counts.max() - counts.min() == 1  # each label in proportion


@pytest.mark.parametrize(
    ("arrays", "data", "code", "says"),
    [
        ({"y": np.full((30, 5), -100)}, {"task": "tagging"}, Code.DATASET_BAD, "Every label is -100"),
        ({"y": ROWS - 1}, {"task": "tagging"}, Code.DATASET_BAD, "lowest label is -1"),
        ({"y": ROWS[:, 0]}, {"task": "tagging"}, Code.DATASET_MISMATCH, "an integer for each position"),
        ({"y": ROWS}, {"task": "embedding"}, Code.DATASET_MISMATCH, "one integer a sample"),
    ],
)
def test_labels_of_another_kind_are_refused(
    tmp_path: Path, arrays: dict[str, Any], data: dict[str, Any], code: Code, says: str
) -> None:
    with pytest.raises(Failure) as caught:
        opened(tmp_path, {"input_ids": ROWS, **arrays}, **data)
    assert caught.value.code is code
    assert says in caught.value.message
