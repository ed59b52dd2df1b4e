"""TFRecord files of `tf.train.Example`: records with CRC-32C checksums, each named lists of numbers or bytes.

Nothing of TensorFlow or protobuf is used. A feature of bytes that begin as an image does is the input; lists of numbers
of one length are arrays, `NAME/shape` gives theirs; labels are in `y`, `label` or `image/class/label`, parts in
`split`. A file that ends between two records cannot be told from a whole one.

Format: tensorflow.org/tutorials/load_data/tfrecord and the protobuf encoding guide.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from models.checksums import crc32c, masked
from models.errors import Code, Failure
from worker.engine.data.npy import Array
from worker.engine.data.pictures import SlicedPictures, begins_like_an_image
from worker.engine.data.protobuf import Features, read_example
from worker.engine.data.table import LABEL_NAMES, Column, Table

HEAD, TAIL = struct.Struct("<QI"), struct.Struct("<I")
BLOCK_BYTES = 16 << 20
MAX_RECORD_BYTES = 256 << 20
MAX_RECORDS = 50_000_000
SHAPE = "/shape"


@dataclass(frozen=True)
class Layout:
    """What the features of the first record are, and so those of all."""

    picture: str | None
    columns: dict[str, Column]
    ignored: list[str]
    names: frozenset[str]


def read_tfrecord(path: Path) -> tuple[dict[str, Array], SlicedPictures | None, list[str]]:
    """The arrays by name (`y` and `split` among them), the encoded images, and the names of features left out.

    Raises Failure: BAD_ARCHIVE for records that are cut short or do not match their checksum, DATASET_BAD for what
    are no Examples, or not alike.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        layout: Layout | None = None
        table: Table | None = None
        starts: list[int] = []
        sizes: list[int] = []
        row = 0
        for records in _blocks(content, size):
            rows: dict[str, list[Any]] = {}
            for start, length in records:
                features = _example(content, start, length, row)
                if layout is None or table is None:
                    layout = _layout(features, content)
                    table = Table(layout.columns, size)
                    rows = {name: [] for name in layout.columns}
                if not rows:
                    rows = {name: [] for name in layout.columns}
                _check_alike(features, layout, row)
                if layout.picture is not None:
                    [(begin, count)] = _strings(features, layout.picture, row)
                    starts.append(begin)
                    sizes.append(count)
                for name, column in layout.columns.items():
                    rows[name].append(_value(features, name, column, row, content))
                row += 1
            if layout is not None and table is not None:
                table.append({name: _stacked(values, layout.columns[name]) for name, values in rows.items()})
    if layout is None or table is None:
        raise Failure(Code.DATASET_BAD, "The file has no records; write one Example for each sample.")
    pictures = None
    if layout.picture is not None:
        pictures = SlicedPictures(path, [f"record {index}" for index in range(row)], starts, sizes)
    return table.arrays()[0], pictures, layout.ignored


def _blocks(content: mmap.mmap, size: int) -> Iterator[list[tuple[int, int]]]:
    """(start, length) of the data of records, about 16 MiB at a time, whose checksums hold."""
    position = count = 0
    while position < size:
        block: list[tuple[int, int]] = []
        begin = position
        while position < size and position - begin < BLOCK_BYTES:
            if position + HEAD.size + TAIL.size > size:
                raise _broken(count, "is cut short")
            length, checksum = HEAD.unpack_from(content, position)
            if checksum != masked(crc32c(content[position : position + 8])):
                raise _broken(count, "has a length that does not match its checksum")
            start = position + HEAD.size
            position = start + length + TAIL.size
            if length > MAX_RECORD_BYTES:
                raise _broken(count, f"has {length} bytes; at most {MAX_RECORD_BYTES} are read")
            if position > size:
                raise _broken(count, "is cut short")
            block.append((start, length))
            count += 1
            if count > MAX_RECORDS:
                raise Failure(Code.BAD_ARCHIVE, f"The file has more than {MAX_RECORDS} records. Send fewer.")
        _check_data(content[begin:position], [(start - begin, length) for start, length in block], count - len(block))
        yield block


def _check_data(content: bytes, records: list[tuple[int, int]], first: int) -> None:
    for index, (start, length) in enumerate(records):
        checksum = google_crc32c.value(content[start : start + length])
        if masked(checksum) != TAIL.unpack_from(content, start + length)[0]:
            raise _broken(first + index, "does not match its checksum")


def _example(content: mmap.mmap, start: int, length: int, row: int) -> Features:
    try:
        return read_example(content[start : start + length], start)
    except (ValueError, IndexError, struct.error) as error:
        raise Failure(
            Code.DATASET_BAD,
            f"The record {row} is no tf.train.Example ({error}). Write Examples.",
            where=f"record {row}",
        ) from error


def _layout(features: Features, content: mmap.mmap) -> Layout:
    columns: dict[str, Column] = {}
    pictures, ignored = [], []
    label = next((name for name in LABEL_NAMES if name in features), None)
    for name, feature in sorted(features.items()):
        if feature.kind == "bytes":
            strings = feature.strings
            if name == "split":
                columns[name] = Column(np.dtype("U16"), ())
            elif len(strings) == 1 and begins_like_an_image(content[strings[0][0] : strings[0][0] + 16]):
                pictures.append(name)
            else:
                ignored.append(name)
        elif not name.endswith(SHAPE) or name.removesuffix(SHAPE) not in features:
            columns[name] = Column(feature.numbers.dtype, _shape(features, name))
    if len(pictures) > 1:
        raise Failure(Code.DATASET_BAD, f"The records have several images ({', '.join(pictures)}). Keep one.")
    if pictures:
        ignored += [name for name in columns if name not in (label, "split")]
        columns = {name: column for name, column in columns.items() if name in (label, "split")}
    return Layout(pictures[0] if pictures else None, columns, sorted(ignored), frozenset(features))


def _shape(features: Features, name: str) -> tuple[int, ...]:
    count = len(features[name].numbers)
    given = features.get(f"{name}{SHAPE}")
    if given is None:
        return () if count == 1 else (count,)
    shape = tuple(given.numbers.tolist()) if given.kind == "int64" else ()
    if not 0 < len(shape) <= 32 or min(shape) < 1 or prod(shape) != count:
        raise Failure(
            Code.DATASET_BAD,
            f"The feature {name + SHAPE!r} says {list(shape)} and {name!r} has {count} numbers. Make them agree.",
            where=name,
        )
    return shape


def _check_alike(features: Features, layout: Layout, row: int) -> None:
    missing = layout.names - features.keys()
    if missing:
        raise Failure(
            Code.DATASET_BAD,
            f"The record {row} has no {min(missing)!r} and the first has. Give all records the same features.",
            where=f"record {row}",
        )


def _strings(features: Features, name: str, row: int) -> list[tuple[int, int]]:
    feature = features[name]
    if feature.kind != "bytes" or len(feature.strings) != 1:
        raise Failure(
            Code.DATASET_BAD, f"The feature {name!r} of record {row} is not one text of bytes.", where=f"record {row}"
        )
    return feature.strings


def _value(features: Features, name: str, column: Column, row: int, content: mmap.mmap) -> Any:
    if column.dtype.kind == "U":
        [(start, count)] = _strings(features, name, row)
        return content[start : start + min(count, 16)].decode("ascii", "replace")
    numbers = features[name].numbers
    if features[name].kind == "bytes" or numbers.dtype != column.dtype or len(numbers) != prod(column.shape):
        raise Failure(
            Code.DATASET_BAD,
            f"The feature {name!r} of record {row} has {len(numbers)} numbers ({features[name].kind}), and "
            f"{prod(column.shape)} ({column.dtype}) in the first. Give all records the same number of them.",
            where=f"record {row}",
        )
    return numbers


def _stacked(values: list[Any], column: Column) -> Array:
    if column.dtype.kind == "U":
        return np.array(values, dtype=column.dtype)
    return np.stack(values).reshape(len(values), *column.shape)


def _broken(record: int, how: str) -> Failure:
    return Failure(
        Code.BAD_ARCHIVE,
        f"The record {record} {how}; the file may be truncated. Send it again.",
        where=f"record {record}",
    )
