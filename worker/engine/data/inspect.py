"""What an uploaded data set holds; the whole file is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.errors import Code, Failure
from models.inspection import DatasetInspection, Notice, TensorInfo
from worker.engine.data.archive import open_archive
from worker.engine.data.images import BadImage, ImageFile, check_bad_share, decode, list_images
from worker.engine.data.labels import label_info
from worker.engine.data.npz import check_contents, read_npz
from worker.engine.data.samples import RESERVED, check_finite
from worker.engine.data.sniff import dataset_format
from worker.engine.data.splits import SPLIT_NAMES, SplitName, split_names


def inspect_dataset(path: Path) -> DatasetInspection:
    """Inputs are one sample each, without the samples' dimension.

    Raises Failure: EMPTY_FILE, UNKNOWN_FORMAT, BAD_ARCHIVE, or DATASET_BAD for arrays that may not be read, different
    numbers of samples, NaN, and more than 5 % bad images.
    """
    return _inspect_arrays(path) if dataset_format(path) == "npz" else _inspect_images(path)


def _inspect_arrays(path: Path) -> DatasetInspection:
    arrays = read_npz(path)
    check_contents(path)
    inputs = {name: array for name, array in arrays.items() if name not in RESERVED}
    if not inputs:
        raise Failure(Code.DATASET_BAD, "There is no input array; name it `x`, or after the network's input.")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise Failure(Code.DATASET_BAD, f"The arrays have different numbers of samples: {shown}.")
    for name, array in inputs.items():
        check_finite(array, name)
    labels = label_info(arrays["y"]) if "y" in arrays else None
    return DatasetInspection(
        format="npz",
        samples=next(iter(lengths.values())),
        inputs=[
            TensorInfo(name=name, dtype=str(array.dtype.newbyteorder("=")), shape=list(array.shape[1:]))
            for name, array in inputs.items()
        ],
        labels=labels,
        splits=_counted(split_names(arrays["split"])) if "split" in arrays else None,
        warnings=[_one_class()] if labels is not None and labels.classes == 1 else [],
    )


def _inspect_images(path: Path) -> DatasetInspection:
    with open_archive(path) as archive:
        listing = list_images(archive)
        good: list[ImageFile] = []
        bad: list[tuple[str, str]] = []
        for file in listing.files:
            try:
                decode(archive, file.name)
            except BadImage as error:
                bad.append((file.name, str(error)))
            else:
                good.append(file)
    check_bad_share(bad, len(listing.files))
    warnings = []
    if bad:
        name, reason = bad[0]
        warnings.append(Notice(code="images_skipped", message=f"{len(bad)} skipped; the first, {name!r}: {reason}."))
    if listing.ignored:
        warnings.append(
            Notice(
                code="files_ignored",
                message=f"{len(listing.ignored)} files are not named like images; the first: {listing.ignored[0]!r}.",
            )
        )
    labels = label_info(np.array([file.class_index for file in good])) if listing.class_names else None
    if labels is not None and labels.classes == 1:
        warnings.append(_one_class())
    marks = [file.split for file in good if file.split is not None]
    return DatasetInspection(
        format="image_folder",
        samples=len(good),
        inputs=[TensorInfo(name="x", dtype="uint8", shape=[3, None, None])],
        labels=labels,
        class_names=listing.class_names,
        splits=_counted(marks) if marks else None,
        skipped_samples=len(bad),
        warnings=warnings,
    )


def _counted(names: Iterable[SplitName]) -> dict[SplitName, int]:
    counts = Counter(names)
    return {name: counts[name] for name in dict.fromkeys(SPLIT_NAMES.values()) if counts[name]}


def _one_class() -> Notice:
    return Notice(code="one_class_only", message="Every label is the same: nothing can be learnt or measured from it.")
