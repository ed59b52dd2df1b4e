"""Columns that come in blocks of rows (Parquet, TFRecord) as the arrays of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from models.errors import Code, Failure
from worker.engine.data.npy import Array
from worker.engine.data.spool import Spool

LABEL_NAMES = ("y", "label", "labels", "image/class/label")
"""What columns of labels are called; the first that is there counts."""
MAX_RATIO = 200
"""Bytes of all columns for each byte of the file: repeated values are stored once in these formats."""
FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Column:
    """Of each row a value of this dtype (a `U` is text) and shape; () is one number."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Table:
    """The columns as `inputs` by name, `y` and `split`; single numbers that are not called `x`, `x0` … are together
    the input `x` [columns], in their order.

    Raises Failure(DATASET_BAD) once the columns take far more bytes than the file.
    """

    def __init__(self, columns: Mapping[str, Column], file_bytes: int) -> None:
        self.label = next((name for name in LABEL_NAMES if name in columns), None)
        inputs = {name: column for name, column in columns.items() if name not in (self.label, "split")}
        self._classes: dict[str, int] = {}
        self._left = max(FREE_BYTES, MAX_RATIO * file_bytes)
        self._texts: dict[str, list[Array]] = {name: [] for name, column in columns.items() if column.dtype.kind == "U"}
        numbers = {name for name in inputs if columns[name].shape == ()}
        self._joined = sorted(numbers, key=list(inputs).index)
        if len(numbers) != len(inputs) or any(re.fullmatch(r"x\d*", name) for name in inputs):
            self._joined = []
        self._spools = {
            name: Spool(column.dtype, column.shape)
            for name, column in columns.items()
            if name not in self._texts and name not in self._joined
        }
        if self._joined:
            dtype = np.result_type(*(columns[name].dtype for name in self._joined))
            self._spools["x"] = Spool(np.dtype(np.float32) if dtype == np.float16 else dtype, (len(self._joined),))

    def append(self, block: Mapping[str, Array]) -> None:
        """Rows [any, *shape] of every column."""
        for name, rows in block.items():
            self._left -= rows.nbytes
            if name in self._texts and name == self.label:
                numbers = [self._classes.setdefault(text, len(self._classes)) for text in rows.tolist()]
                self._texts[name].append(np.array(numbers, dtype=np.int64))
            elif name in self._texts:
                self._texts[name].append(rows)
            elif name not in self._joined:
                self._spools[name].append(rows)
        if self._left < 0:
            raise Failure(
                Code.DATASET_BAD,
                f"The columns are more than {MAX_RATIO} times as large as the file; write them without repetition or "
                "send `.npz`.",
            )
        if self._joined:
            self._spools["x"].append(np.stack([block[name] for name in self._joined], axis=1))

    def arrays(self) -> tuple[dict[str, Array], list[str] | None]:
        """The arrays, and the names of the classes where labels are texts: those sorted, numbered from 0."""
        arrays = {self._name(name): spool.array() for name, spool in self._spools.items()}
        texts = {self._name(name): np.concatenate(blocks) for name, blocks in self._texts.items()}
        if not self._classes:
            return arrays | texts, None
        class_names = sorted(self._classes)
        order = np.empty(len(class_names), dtype=np.int64)
        order[[self._classes[name] for name in class_names]] = np.arange(len(class_names))
        return arrays | texts | {"y": order[texts["y"]]}, class_names

    def _name(self, name: str) -> str:
        return "y" if name == self.label else name


def rows_in(columns: Mapping[str, Column], block_bytes: int) -> int:
    """How many rows of the columns make a block."""
    row = sum(prod(column.shape) * column.dtype.itemsize for column in columns.values())
    return min(65536, max(1, block_bytes // max(1, row)))
