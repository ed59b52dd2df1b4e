"""The same data in every format of arrays: what is read must not depend on how it was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ["train", "val", "test"]


def write_npz(path: Path, arrays: Mapping[str, Array]) -> Path:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> Path:
    """A `split` of text is written as numbers, which this format has alone."""
    save_file({name: _counted(array) for name, array in arrays.items()}, path)
    return path


def _counted(array: Array) -> Array:
    return np.array([PARTS.index(text) for text in array.tolist()]) if array.dtype.kind == "U" else array.copy()


ARRAY_FORMS: dict[str, Callable[[Path, Mapping[str, Array]], Path]] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
}
"""Formats of named arrays, and how a person writes one."""
