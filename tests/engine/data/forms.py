"""The same data in every format: what is read must not depend on how it was written."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from models.checksums import crc32c, masked

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


def write_hdf5(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Contiguous, as h5py does by itself."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            texts = array.dtype.kind == "U"
            file.create_dataset(
                name, data=array.astype(object) if texts else array, dtype=_h5_text() if texts else None
            )
    return path


def write_chunked_hdf5(path: Path, arrays: Mapping[str, Array]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                file.create_dataset(name, data=array.astype("S"))
            else:
                chunks = (7, *array.shape[1:])
                file.create_dataset(name, data=array, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)
    return path


def write_parquet(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Lists in lists; several row groups."""
    columns = {name: pa.array(array.tolist(), _arrow_type(array)) for name, array in arrays.items()}
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def write_tfrecord(path: Path, arrays: Mapping[str, Array]) -> Path:
    examples = []
    for row in range(len(next(iter(arrays.values())))):
        features: dict[str, bytes] = {}
        for name, array in arrays.items():
            features[name] = feature(array[row])
            if array.ndim > 2:
                features[f"{name}/shape"] = feature(np.array(array.shape[1:]))
        examples.append(example(features))
    path.write_bytes(b"".join(map(record, examples)))
    return path


def write_webdataset(path: Path, arrays: Mapping[str, Array]) -> Path:
    members: dict[str, bytes] = {}
    for row in range(len(next(iter(arrays.values())))):
        for name, array in arrays.items():
            if name == "split":
                members[f"{row:06}.json"] = json.dumps({"split": str(array[row])}).encode()
            else:
                buffer = io.BytesIO()
                np.save(buffer, array[row], allow_pickle=False)
                members[f"{row:06}.{name}.npy"] = buffer.getvalue()
    return write_tar(path, members)


ARRAY_FORMS: dict[str, Callable[[Path, Mapping[str, Array]], Path]] = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "hdf5": write_hdf5,
    "hdf5 chunked": write_chunked_hdf5,
    "parquet": write_parquet,
    "tfrecord": write_tfrecord,
    "webdataset": write_webdataset,
}
"""Formats of named arrays, and how a person writes one."""


def picture(value: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def write_zip_folder(path: Path, images: Sequence[bytes], labels: Sequence[int] | None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in _in_folders(images, labels).items():
            archive.writestr(name, content)
    return path


def write_tar_folder(path: Path, images: Sequence[bytes], labels: Sequence[int] | None) -> Path:
    return write_tar(path, {f"./{name}": content for name, content in _in_folders(images, labels).items()})


def write_webdataset_images(path: Path, images: Sequence[bytes], labels: Sequence[int] | None) -> Path:
    members: dict[str, bytes] = {}
    for row, content in enumerate(images):
        members[f"{row:06}.png"] = content
        members[f"{row:06}.json"] = b"{}"
        if labels is not None:
            members[f"{row:06}.cls"] = str(labels[row]).encode()
    return write_tar(path, members)


def write_parquet_images(path: Path, images: Sequence[bytes], labels: Sequence[int] | None) -> Path:
    columns = {"image": pa.array([{"bytes": content, "path": "1.png"} for content in images])}
    if labels is not None:
        columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def write_tfrecord_images(path: Path, images: Sequence[bytes], labels: Sequence[int] | None) -> Path:
    records = []
    for row, content in enumerate(images):
        features = {"image/encoded": feature(content), "image/format": feature(b"PNG")}
        if labels is not None:
            features["image/class/label"] = feature(np.array(labels[row]))
        records.append(record(example(features)))
    path.write_bytes(b"".join(records))
    return path


IMAGE_FORMS: dict[str, Callable[[Path, Sequence[bytes], Sequence[int] | None], Path]] = {
    "zip of folders": write_zip_folder,
    "tar of folders": write_tar_folder,
    "webdataset": write_webdataset_images,
    "parquet": write_parquet_images,
    "tfrecord": write_tfrecord_images,
}


def write_tar(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def record(content: bytes) -> bytes:
    """One of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked(crc32c(part))) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def example(features: Mapping[str, bytes]) -> bytes:
    """A `tf.train.Example` of encoded features."""
    entries = (field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items())
    return field(1, b"".join(entries))


def feature(value: Any) -> bytes:
    """Bytes and texts as they are, floats and whole numbers packed."""
    if isinstance(value, str | bytes):
        return field(1, field(1, value.encode() if isinstance(value, str) else value))
    numbers = np.asarray(value).reshape(-1)
    if numbers.dtype.kind == "f":
        return field(2, field(1, numbers.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(number) & (1 << 64) - 1) for number in numbers)))


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _in_folders(images: Sequence[bytes], labels: Sequence[int] | None) -> dict[str, bytes]:
    folders = ["all"] * len(images) if labels is None else [f"class {label}" for label in labels]
    return {
        f"{folder}/{row:06}.png": content for row, (folder, content) in enumerate(zip(folders, images, strict=True))
    }


def _counted(array: Array) -> Array:
    return np.array([PARTS.index(text) for text in array.tolist()]) if array.dtype.kind == "U" else array.copy()


def _h5_text() -> Any:
    return h5py.string_dtype()


def _arrow_type(array: Array) -> pa.DataType:
    kind = pa.string() if array.dtype.kind == "U" else pa.from_numpy_dtype(array.dtype)
    for size in reversed(array.shape[1:]):
        kind = pa.list_(kind, size) if size % 2 else pa.list_(kind)
    return kind
