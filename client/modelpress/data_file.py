"""Data sets to `.npz` files the service reads: plain arrays, samples first, nothing compressed, nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpress.outcomes import PrepareError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

_SPLITS = ("train", "val", "test")
_LABEL_NAMES = ("y", "labels", "label", "targets", "target")


def prepare_data(source: Any, path: str | Path, limit: int | None = None, *, labels: bool = True) -> Path:
    """Write samples, and labels when there are any, to `path` (`.npz`).

    `source` is a DataLoader or any iterable of batches; a tuple of arrays or tensors; a mapping of arrays by input
    name (`y` for labels, `split` for `train`/`val`/`test` of each sample); or a mapping with the keys `train`, `val`,
    `test` and any of these as values, which keeps the split. In batches and tuples of two or more, the last entry is
    the labels unless `labels` is false. `limit` is the most samples written, of each split when there are several.

    Batches come out of the loader as they are: turn random augmentation off, and leave normalisation either to the
    loader or to the job's `transform`, not both.

    Raises PrepareError.
    """
    import numpy as np

    target = Path(path)
    if target.suffix != ".npz":
        target = target.with_name(target.name + ".npz")
    if isinstance(source, Mapping) and source and set(source) <= set(_SPLITS):
        parts = {name: _arrays(part, limit, labels) for name, part in source.items()}
        names = {tuple(sorted(part)) for part in parts.values()}
        if len(names) != 1:
            raise PrepareError(f"The splits do not hold the same arrays: {sorted(names)}.")
        arrays = {name: np.concatenate([part[name] for part in parts.values()]) for name in next(iter(parts.values()))}
        arrays["split"] = np.concatenate([np.full(_count(part), name) for name, part in parts.items()])
    else:
        arrays = _arrays(source, limit, labels)
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _arrays(source: Any, limit: int | None, labels: bool) -> Arrays:
    if isinstance(source, Mapping | tuple) or hasattr(source, "__array__"):
        arrays = _named(source, labels)
    elif isinstance(source, Iterable):
        arrays = _joined(source, limit, labels)
    else:
        raise PrepareError(f"prepare_data() takes a DataLoader, arrays or a mapping, not a {type(source).__name__}.")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise PrepareError(f"Every array needs one entry a sample; these have {lengths}.")
    if not _count(arrays):
        raise PrepareError("There are no samples.")
    return {name: array[:limit] for name, array in arrays.items()}


def _count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _joined(batches: Iterable[Any], limit: int | None, labels: bool) -> Arrays:
    import numpy as np

    taken: list[Arrays] = []
    count = 0
    for batch in batches:
        taken.append(_named(tuple(batch) if isinstance(batch, list) else batch, labels))
        count += _count(taken[-1])
        if limit is not None and count >= limit:
            break
    if not taken:
        raise PrepareError("The loader gave no batches.")
    try:
        return {name: np.concatenate([arrays[name] for arrays in taken]) for name in taken[0]}
    except (KeyError, ValueError) as error:
        raise PrepareError(f"The batches do not fit together: {error}. Samples must all have one shape.") from error


def _named(batch: Any, labels: bool) -> Arrays:
    if isinstance(batch, Mapping):
        return {
            ("y" if labels and name in _LABEL_NAMES else str(name)): _array(value, str(name))
            for name, value in batch.items()
        }
    values = list(batch) if isinstance(batch, tuple) else [batch]
    named: dict[str, Any] = {"y": values.pop()} if labels and len(values) > 1 else {}
    inputs = {"x": values[0]} if len(values) == 1 else {f"x{i}": value for i, value in enumerate(values)}
    return {name: _array(value, name) for name, value in (inputs | named).items()}


def _array(value: Any, name: str) -> NDArray[Any]:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    array: np.ndarray[Any, Any] = np.ascontiguousarray(value)
    if array.dtype.kind not in "biufUS" or np.ndim(value) == 0:
        raise PrepareError(f"{name} is not an array of numbers with one entry a sample (it is {array.dtype}).")
    return array.astype(np.float32) if array.dtype == np.float64 else array
