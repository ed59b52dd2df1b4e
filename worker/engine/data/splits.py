"""Which samples train, which select, which are kept for the report.

Splits that come with the data are used as they are. Where `test` is missing, half of `val` becomes it; where `val` is
missing, a tenth of `train` does; without any split, a tenth each. A part made here is drawn at random from the job's
seed, each class in proportion, and marked: the original may have been trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.errors import Code, Failure
from worker.engine.data.npy import Array

SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
PARTS: tuple[SplitName, ...] = ("train", "val", "test")
MEANINGS = "train, val or test (as numbers 0, 1 or 2)"
HELD_OUT = 0.1
MINIMUM_SAMPLES = 3

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Splits:
    """Row numbers of each part, ascending. `made_here`: at least one part was drawn here."""

    train: Rows
    val: Rows
    test: Rows
    made_here: bool


def split_names(values: Array) -> list[SplitName]:
    """The names in a `split` array, as text or bytes, one a sample; formats without text count them: 0 is train, 1 is
    val, 2 is test. Raises Failure(DATASET_BAD) for others."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise Failure(
            Code.DATASET_BAD,
            f"The array 'split' has dtype {values.dtype} and shape {list(values.shape)}; "
            f"it must be one text or number a sample: {MEANINGS}.",
            where="split",
        )
    known: dict[Any, SplitName] = dict(enumerate(PARTS)) if values.dtype.kind in "iu" else dict(SPLIT_NAMES)
    texts = values
    if values.dtype.kind in "US":
        texts = values.astype(str) if values.dtype.kind == "U" else np.char.decode(values, "ascii", "replace")
    unknown = set(np.unique(texts).tolist()) - set(known)
    if unknown:
        raise Failure(
            Code.DATASET_BAD, f"The array 'split' says {sorted(unknown)[0]!r}; it must say {MEANINGS}.", where="split"
        )
    return [known[text] for text in texts.tolist()]


def make_splits(samples: int, given: list[SplitName] | None, classes: Array | None, seed: int) -> Splits:
    """Row numbers of the three parts. `classes`: an integer for each sample to keep in proportion, or None.

    Raises Failure(DATASET_BAD) when a part would be empty.
    """
    if given is None:
        if samples < MINIMUM_SAMPLES:
            raise Failure(
                Code.DATASET_BAD,
                f"{samples} samples cannot be split into train, val and test; send at least {MINIMUM_SAMPLES}.",
            )
        everything = np.arange(samples)
        train, held_out = _draw(everything, max(2, 2 * round(samples * HELD_OUT)), classes, seed)
        return Splits(train, np.sort(held_out[0::2]), np.sort(held_out[1::2]), made_here=True)

    names = np.asarray(given)
    train, val, test = (np.flatnonzero(names == name) for name in ("train", "val", "test"))
    made_here = False
    if not len(train):
        raise _empty("train", "mark the samples to train on, or leave the split out")
    if not len(val):
        if len(train) < 2:
            raise _empty("val", "mark some samples as val")
        train, drawn = _draw(train, max(1, round(len(train) * HELD_OUT)), classes, seed)
        val, made_here = np.sort(drawn), True
    if not len(test):
        if len(val) < 2:
            raise _empty("test", "mark some samples as test")
        val, drawn = _draw(val, len(val) // 2, classes, seed)
        test, made_here = np.sort(drawn), True
    return Splits(train, val, test, made_here)


def _draw(rows: Rows, count: int, classes: Array | None, seed: int) -> tuple[Rows, Rows]:
    """(what stays, ascending; `count` rows drawn, ordered by class): evenly spaced over a shuffle sorted by class."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    if classes is not None:
        shuffled = shuffled[np.argsort(np.asarray(classes)[shuffled], kind="stable")]
    count = min(count, len(rows) - 1)
    positions = ((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)
    drawn = shuffled[positions]
    return np.setdiff1d(rows, drawn), drawn


def _empty(name: str, remedy: str) -> Failure:
    return Failure(Code.DATASET_BAD, f"The split has no {name!r} samples; {remedy}.", where="split")
