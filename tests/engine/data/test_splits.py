"""Splits: given ones as they are, missing ones drawn from the seed in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import Code, Failure
from worker.engine.data.splits import make_splits, split_names


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(3, 400), classes=st.integers(1, 12), seed=st.integers(0, 2**63 - 1))
def test_every_sample_is_in_exactly_one_part(samples: int, classes: int, seed: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, samples)
    splits = make_splits(samples, None, labels, seed)
    together = np.sort(np.concatenate([splits.train, splits.val, splits.test]))
    np.testing.assert_array_equal(together, np.arange(samples))
    assert min(len(splits.train), len(splits.val), len(splits.test)) >= 1
    assert abs(len(splits.val) - samples / 10) <= 1
    assert len(splits.val) == len(splits.test)
    assert splits.made_here


def test_classes_keep_their_proportions() -> None:
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    splits = make_splits(1000, None, labels, seed=3)
    for part in (splits.val, splits.test):
        assert np.bincount(labels[part]).tolist() == [80, 15, 5]


def test_the_seed_decides() -> None:
    first, again, other = (make_splits(100, None, None, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.val, again.val)
    assert not np.array_equal(first.val, other.val)


def test_given_parts_are_used_as_they_are() -> None:
    splits = make_splits(6, ["test", "train", "val", "train", "train", "val"], None, seed=0)
    assert (splits.train.tolist(), splits.val.tolist(), splits.test.tolist()) == ([1, 3, 4], [2, 5], [0])
    assert not splits.made_here


def test_a_missing_test_part_is_half_of_val() -> None:
    splits = make_splits(20, split_names(np.repeat(["train", "val"], [10, 10])), None, seed=0)
    assert splits.train.tolist() == list(range(10))
    assert sorted([*splits.val, *splits.test]) == list(range(10, 20))
    assert (len(splits.val), len(splits.test)) == (5, 5)
    assert splits.made_here


def test_a_missing_val_part_is_a_tenth_of_train_and_never_of_test() -> None:
    splits = make_splits(50, split_names(np.repeat(["train", "test"], [40, 10])), None, seed=0)
    assert splits.test.tolist() == list(range(40, 50))
    assert (len(splits.train), len(splits.val)) == (36, 4)
    assert splits.made_here


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["val", "test", "test"], "'train'"),
        (["train", "test", "test"], "'val'"),
        (["train", "train", "val"], "'test'"),
    ],
)
def test_an_empty_part_is_refused(given: list[str], named: str) -> None:
    names = split_names(np.array(given))
    with pytest.raises(Failure) as caught:
        make_splits(3, names, None, seed=0)
    assert caught.value.code is Code.DATASET_BAD
    assert f"no {named} samples" in caught.value.message


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(Failure, match="at least 3"):
        make_splits(2, None, None, seed=0)


def test_names_may_be_bytes_and_have_synonyms() -> None:
    assert split_names(np.array([b"train", b"validation", b"valid", b"test"])) == ["train", "val", "val", "test"]


@pytest.mark.parametrize("values", [np.array(["train", "dev"]), np.array([0, 1, 3]), np.array([["train"], ["val"]])])
def test_other_names_are_refused(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    with pytest.raises(Failure) as caught:
        split_names(values)
    assert caught.value.where == "split"
