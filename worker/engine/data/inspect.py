"""What an uploaded data set holds; the whole file is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.inspection import DatasetInspection, ImageSizes, Notice, TensorInfo
from models.split_rules import SplitName
from worker.engine.data.contents import Contents, read_contents
from worker.engine.data.images import check_bad_share, decode
from worker.engine.data.labels import label_info
from worker.engine.data.npz import check_contents
from worker.engine.data.pictures import BadImage, Pictures
from worker.engine.data.samples import check_finite
from worker.engine.data.splits import SPLIT_NAMES, Rows


def inspect_dataset(path: Path) -> DatasetInspection:
    """Inputs are one sample each, without the samples' dimension.

    Raises Failure: EMPTY_FILE, UNKNOWN_FORMAT, BAD_ARCHIVE, or DATASET_BAD for arrays that may not be read, different
    numbers of samples, NaN, and more than 5 % bad images.
    """
    contents = read_contents(path)
    if contents.format == "npz":
        check_contents(path)
    if contents.pictures is not None:
        return _inspect_pictures(contents, contents.pictures)
    for name, array in contents.arrays.items():
        check_finite(array, name)
    return _inspection(
        contents,
        samples=len(contents),
        inputs=[
            TensorInfo(name=name, dtype=str(array.dtype.newbyteorder("=")), shape=list(array.shape[1:]))
            for name, array in contents.arrays.items()
        ],
    )


def _inspect_pictures(contents: Contents, pictures: Pictures) -> DatasetInspection:
    kept: list[int] = []
    heights, widths = [], []
    bad: list[tuple[str, str]] = []
    for index, name in enumerate(pictures.names):
        try:
            image = decode(pictures.read(index))
        except BadImage as error:
            bad.append((name, str(error)))
            continue
        kept.append(index)
        heights.append(image.height)
        widths.append(image.width)
    check_bad_share(bad, len(pictures.names))
    warnings = []
    if bad:
        name, reason = bad[0]
        warnings.append(Notice(code="images_skipped", message=f"{len(bad)} skipped; the first, {name!r}: {reason}."))
    return _inspection(
        contents,
        samples=len(kept),
        inputs=[TensorInfo(name="x", dtype="uint8", shape=[3, None, None])],
        rows=np.array(kept),
        warnings=warnings,
        skipped_samples=len(bad),
        image_sizes=ImageSizes(
            minimum_height=min(heights),
            maximum_height=max(heights),
            minimum_width=min(widths),
            maximum_width=max(widths),
        ),
    )


def _inspection(
    contents: Contents,
    *,
    samples: int,
    inputs: list[TensorInfo],
    rows: Rows | None = None,
    warnings: Iterable[Notice] = (),
    skipped_samples: int = 0,
    image_sizes: ImageSizes | None = None,
) -> DatasetInspection:
    """`rows` are the samples that can be used, where not all can."""
    labels, split, notices = contents.labels, contents.split, list(warnings)
    if rows is not None:
        labels = None if labels is None else labels[rows]
        split = None if split is None else [split[row] for row in rows.tolist()]
    if contents.ignored:
        notices.append(
            Notice(
                code="files_ignored",
                message=f"{len(contents.ignored)} files are not part of any sample; "
                f"the first: {contents.ignored[0][:200]!r}.",
            )
        )
    info = None if labels is None else label_info(labels)
    if info is not None and info.classes == 1:
        notices.append(
            Notice(code="one_class_only", message="Every label is the same: nothing can be learnt or measured from it.")
        )
    return DatasetInspection(
        format=contents.format,
        samples=samples,
        inputs=inputs,
        labels=info,
        class_names=contents.class_names,
        splits=None if split is None else _counted(split),
        skipped_samples=skipped_samples,
        image_sizes=image_sizes,
        warnings=notices,
    )


def _counted(names: Iterable[SplitName]) -> dict[SplitName, int]:
    counts = Counter(names)
    return {name: counts[name] for name in dict.fromkeys(SPLIT_NAMES.values()) if counts[name]}
