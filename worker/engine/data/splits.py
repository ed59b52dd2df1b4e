"""Which samples train, which select, which are kept for the report.

Splits that come with the data are used as they are. Where `test` is missing, half of `val` becomes it; where `val` is
missing, a tenth of `train` does; without any split, a tenth each. A part made here is drawn at random from the job's
seed, each class in proportion, and marked: the original may have been trained on it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import Code, Failure
from models.split_rules import HELD_OUT, SplitName, drawn_from, why_no_three_parts
from worker.engine.data.npy import Array

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
PARTS: tuple[SplitName, ...] = ("train", "val", "test")
MEANINGS = "train, val or test (as numbers 0, 1 or 2)"

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
    wrong = why_no_three_parts(samples, None if given is None else Counter(given))
    if wrong is not None:
        raise Failure(Code.DATASET_BAD, wrong, where=None if given is None else "split")
    if given is None:
        everything = np.arange(samples)
        train, held_out = _draw(everything, max(2, 2 * round(samples * HELD_OUT)), classes, seed)
        return Splits(train, np.sort(held_out[0::2]), np.sort(held_out[1::2]), made_here=True)

    names = np.asarray(given)
    train, val, test = (np.flatnonzero(names == name) for name in ("train", "val", "test"))
    made_here = False
    if not len(val):
        train, drawn = _draw(train, drawn_from(len(train)), classes, seed)
        val, made_here = np.sort(drawn), True
    if not len(test):
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
