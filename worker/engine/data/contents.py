"""What a data set's file holds, whatever its format: inputs, labels and split of every sample, nothing of it judged.

To add a format: a row in `models.formats` that recognises its first bytes, its name in `models.inspection`, a reader
here in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.errors import Code, Failure
from models.formats import HEAD_BYTES, SAVE_DATA, DatasetHead, sniff_dataset
from models.inspection import DatasetFormat
from models.split_rules import SplitName
from worker.engine.data.archive import open_archive
from worker.engine.data.folders import SUFFIXES, Listing, list_images
from worker.engine.data.npy import Array, check_layout, read_npy
from worker.engine.data.npz import read_npz
from worker.engine.data.pictures import Pictures, ZippedPictures
from worker.engine.data.splits import split_names
from worker.engine.data.tar import list_members, pictures_of
from worker.engine.data.tensors import read_safetensors
from worker.engine.data.tfrecord import read_tfrecord
from worker.engine.data.webdataset import SampleTable, group_samples, is_webdataset

RESERVED = ("y", "split")
"""Names of arrays that are not inputs."""


@dataclass(frozen=True)
class Contents:
    """Every part has one entry a sample. The inputs are `arrays`, or encoded `pictures` for the only one.

    `split` is None where nothing says which part a sample belongs to; `ignored` are members that were left out.
    """

    format: DatasetFormat
    arrays: Mapping[str, Array]
    pictures: Pictures | None
    labels: Array | None
    split: list[SplitName] | None
    class_names: list[str] | None = None
    ignored: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures.names if self.pictures is not None else next(iter(self.arrays.values())))


def read_contents(path: Path) -> Contents:
    """Raises Failure: EMPTY_FILE, UNKNOWN_FORMAT (saying what it is and what to send), UNSAFE_PICKLE, BAD_ARCHIVE for
    a broken file, DATASET_BAD for arrays that may not be read or have different numbers of samples."""
    with path.open("rb") as file:
        head = sniff_dataset(file.read(HEAD_BYTES), path.stat().st_size)
    return READERS[head](path)


def of_arrays(
    format_: DatasetFormat,
    arrays: Mapping[str, Array],
    pictures: Pictures | None = None,
    class_names: list[str] | None = None,
    ignored: Sequence[str] = (),
) -> Contents:
    """The contents of named arrays: labels in `y`, the part of each sample in `split`, all others are inputs, unless
    `pictures` are."""
    for name, array in arrays.items():
        check_layout(name, array.shape, array.dtype)
    inputs = {name: array for name, array in arrays.items() if name not in RESERVED}
    if pictures is None and not inputs:
        raise Failure(Code.DATASET_BAD, "There is no input array; name it `x`, or after the network's input.")
    if pictures is not None and inputs:
        raise Failure(
            Code.DATASET_BAD,
            f"The samples have images and the arrays {', '.join(map(repr, sorted(inputs)))}: images feed a network's "
            "only input. Leave one of them out, or send all inputs as arrays.",
        )
    lengths = {name: len(array) for name, array in arrays.items()}
    if pictures is not None:
        lengths["images"] = len(pictures.names)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} {length}" for name, length in list(lengths.items())[:8])
        remedy = "Give each array one entry for every sample"
        if format_ == "safetensors":
            remedy += "; weights of a network are sent with the name of their `arch`"
        raise Failure(Code.DATASET_BAD, f"The arrays have different numbers of samples: {shown}. {remedy}.")
    split = split_names(arrays["split"]) if "split" in arrays else None
    return Contents(format_, inputs, pictures, arrays.get("y"), split, class_names, list(ignored))


def _read_zip(path: Path) -> Contents:
    with open_archive(path) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if any(name.endswith(".npy") for name in names):
        return of_arrays("npz", read_npz(path))
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        listing = list_images(names)
        return _of_folders(listing, ZippedPictures(open_archive(path), [file.name for file in listing.files]))
    if any(name.endswith(("data.pkl", "archive_format", "serialized_exported_program.json")) for name in names):
        raise Failure(Code.UNKNOWN_FORMAT, f"This is a network saved by PyTorch, not data. {SAVE_DATA}.")
    raise Failure(Code.UNKNOWN_FORMAT, f"This zip holds neither arrays nor images. {SAVE_DATA}.")


def _read_tar(path: Path) -> Contents:
    members = list_members(path)
    if is_webdataset(members):
        samples, ignored = group_samples(members)
        table = SampleTable(path, samples)
        return of_arrays("webdataset", table.arrays, table.pictures, table.class_names, ignored)
    listing = list_images([member.name for member in members])
    by_name = {member.name: member for member in members}
    return _of_folders(listing, pictures_of(path, [by_name[file.name] for file in listing.files]))


def _of_folders(listing: Listing, pictures: Pictures) -> Contents:
    marks = [file.split for file in listing.files if file.split is not None]
    classes = np.array([file.class_index for file in listing.files]) if listing.class_names else None
    return Contents("image_folder", {}, pictures, classes, marks or None, listing.class_names, listing.ignored)


def _read_hdf5(path: Path) -> Contents:
    from worker.engine.data.hdf5 import read_hdf5

    return of_arrays("hdf5", read_hdf5(path))


def _read_parquet(path: Path) -> Contents:
    from worker.engine.data.parquet import read_parquet

    return of_arrays("parquet", *read_parquet(path))


def _read_tfrecord(path: Path) -> Contents:
    arrays, pictures, ignored = read_tfrecord(path)
    return of_arrays("tfrecord", arrays, pictures, None, ignored)


READERS: dict[DatasetHead, Callable[[Path], Contents]] = {
    "zip": _read_zip,
    "tar": _read_tar,
    "npy": lambda path: of_arrays("npy", {"x": read_npy(path, "x")}),
    "safetensors": lambda path: of_arrays("safetensors", read_safetensors(path)),
    "hdf5": _read_hdf5,
    "parquet": _read_parquet,
    "tfrecord": _read_tfrecord,
}
"""By what the first bytes show. h5py and pyarrow are loaded only where a file needs them."""
