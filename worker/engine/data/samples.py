"""Where samples come from: arrays or image files. Either answers row numbers with network inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Transform
from worker.engine.data.npy import Array
from worker.engine.data.splits import Rows
from worker.engine.data.transform import check_channels, normalise

BLOCK_BYTES = 16 << 20


class Samples(Protocol):
    """`read` gives one tensor for each network input, samples first, in the network's dtypes; in several threads at a
    time."""

    def __len__(self) -> int: ...

    def read(self, rows: Rows) -> tuple[Tensor, ...]: ...


class ArraySamples:
    """Named arrays, checked against the network's inputs.

    Raises Failure: DATASET_MISMATCH for other names, shapes or dtypes, DATASET_BAD for a NaN.
    """

    def __init__(self, arrays: Mapping[str, Array], inputs: tuple[TensorInfo, ...], transform: Transform) -> None:
        if transform.resize is not None or transform.crop is not None:
            raise Failure(
                Code.DATASET_MISMATCH,
                "`resize` and `crop` are for image files; arrays must have the network's size already.",
                where="/data/transform",
            )
        self.arrays = match_arrays(arrays, inputs)
        self.dtypes = [torch_dtype(info) for info in inputs]
        self.transform = transform
        for name, array, info in zip(input_names(arrays, inputs), self.arrays, inputs, strict=True):
            if torch_dtype(info).is_floating_point:
                check_channels(transform, array.shape[1:], info.name)
            check_finite(array, name)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def read(self, rows: Rows) -> tuple[Tensor, ...]:
        result = []
        for array, dtype in zip(self.arrays, self.dtypes, strict=True):
            values = as_tensor(array[rows])
            result.append(normalise(values, self.transform, dtype) if dtype.is_floating_point else values.to(dtype))
        return tuple(result)


def as_tensor(values: Array) -> Tensor:
    """A tensor of its own memory, in native byte order; unsigned integers wider than 8 bits become int64."""
    dtype = np.dtype(np.int64) if values.dtype.kind == "u" and values.dtype.itemsize > 1 else values.dtype
    return torch.from_numpy(np.array(values, dtype=dtype.newbyteorder("="), order="C"))


def torch_dtype(info: TensorInfo) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, info.dtype)
    return dtype


def input_names(arrays: Mapping[str, Array], inputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """The arrays that feed the inputs: by input name, else `x` for the only one, else `x0, x1, …`.

    Raises Failure(DATASET_MISMATCH) with both lists when neither is there.
    """
    own = tuple(info.name for info in inputs)
    numbered = tuple(f"x{index}" for index in range(len(inputs)))
    for names in (own, ("x",) if len(inputs) == 1 else (), numbered):
        if names and all(name in arrays for name in names):
            return names
    present = sorted(arrays)
    raise Failure(
        Code.DATASET_MISMATCH,
        f"The network's inputs are {_listed(own)} and the data has {_listed(present)}; name the arrays after the "
        f"inputs, or {'`x`' if len(inputs) == 1 else '`x0`, `x1`, … in call order'}.",
    )


def match_arrays(arrays: Mapping[str, Array], inputs: tuple[TensorInfo, ...]) -> tuple[Array, ...]:
    """The arrays in the order of the inputs. Raises Failure(DATASET_MISMATCH), both sides shown, if they do not fit."""
    names = input_names(arrays, inputs)
    chosen = tuple(arrays[name] for name in names)
    rows = []
    fits = True
    for name, array, info in zip(names, chosen, inputs, strict=True):
        good = _shape_fits(array.shape[1:], info) and _dtype_fits(array, info)
        fits = fits and good
        wanted, found = _shown(info.dtype, info.shape), _shown(str(array.dtype), ["N", *array.shape[1:]])
        rows.append(f"input {info.name!r} takes {wanted}, array {name!r} has {found}{'' if good else '  <- differs'}")
        if not good and _channels_last(array.shape[1:], info):
            rows[-1] += " (put the channels first: `np.moveaxis(x, -1, 1)`)"
    if not fits:
        raise Failure(Code.DATASET_MISMATCH, "The data does not fit the network's inputs: " + "; ".join(rows) + ".")
    return chosen


def check_finite(array: Array, name: str) -> None:
    """Raises Failure(DATASET_BAD) with the first sample that holds a NaN."""
    if array.dtype.kind != "f":
        return
    for start, block in blocks(array):
        found = np.isnan(block).reshape(len(block), -1).any(axis=1)
        if found.any():
            first = start + int(found.argmax())
            raise Failure(
                Code.DATASET_BAD,
                f"The array {name!r} has a NaN in sample {first} (the first); remove or correct it.",
                where=f"{name}[{first}]",
            )


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """(first row, rows) of about 16 MiB, so that a mapped file larger than memory can be scanned."""
    step = max(1, BLOCK_BYTES // max(1, array.nbytes // len(array)))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _shape_fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    wanted = info.shape[1:]
    return len(shape) == len(wanted) and all(w is None or w == s for w, s in zip(wanted, shape, strict=True))


def _dtype_fits(array: Array, info: TensorInfo) -> bool:
    wanted = torch_dtype(info)
    if wanted.is_floating_point:
        return array.dtype.kind in "biuf"
    return array.dtype.kind in "biu" and not wanted.is_complex


def _channels_last(shape: tuple[int, ...], info: TensorInfo) -> bool:
    return len(shape) == 3 and _shape_fits((shape[-1], *shape[:-1]), info)


def _shown(dtype: str, shape: list[int | None] | list[str | int]) -> str:
    sizes = ", ".join("N" if index == 0 else "any" if size is None else str(size) for index, size in enumerate(shape))
    return f"{dtype} [{sizes}]"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
