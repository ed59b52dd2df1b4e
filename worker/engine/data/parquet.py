"""Columns of a Parquet file: numbers, lists of numbers of one shape, or encoded images. Read in order, batch by batch.

A column of bytes, or a struct with `bytes` as Hugging Face writes images, is the image; numbers that are not called
`x`, `x0` … are together one input `x`; labels are in `y` or `label`, as numbers or names, parts in `split`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import Code, Failure
from worker.engine.data.npy import Array
from worker.engine.data.npz import FREE_BYTES, MAX_ARRAYS, MAX_RATIO
from worker.engine.data.pictures import SlicedPictures
from worker.engine.data.spool import scratch
from worker.engine.data.table import LABEL_NAMES, Column, Table, rows_in

BLOCK_BYTES = 4 << 20
IMAGE_ROWS = 16
MAX_DEPTH = 8
MAX_METADATA_BYTES = 64 << 20
Found = tuple[dict[str, Array], SlicedPictures | None, list[str] | None, list[str]]


def read_parquet(path: Path) -> Found:
    """The arrays by name, the encoded images, the names of classes, and the names of columns left out.

    Raises Failure: BAD_ARCHIVE for a broken file, DATASET_BAD for columns that may not be read, and says which.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        with pq.ParquetFile(
            path,
            memory_map=False,
            buffer_size=1 << 20,
            pre_buffer=False,
            thrift_string_size_limit=MAX_METADATA_BYTES,
            thrift_container_size_limit=1_000_000,
        ) as file:
            return _read(path, file)
    except MemoryError:
        raise  # Arrow's own is an ArrowException too, and says nothing about the file
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise Failure(
            Code.BAD_ARCHIVE,
            f"The Parquet file cannot be read: {str(error)[:300]}. It may be truncated; send it again whole.",
        ) from error


def _read(path: Path, file: pq.ParquetFile) -> Found:
    schema = file.schema_arrow
    if len(schema.names) > MAX_ARRAYS or len(set(schema.names)) != len(schema.names):
        raise Failure(
            Code.DATASET_BAD,
            f"The file has {len(schema.names)} columns; at most {MAX_ARRAYS} are read.",
        )
    if file.metadata.num_rows < 1:
        raise Failure(Code.DATASET_BAD, "The file has no rows; write one for each sample.")
    _check_compression(file.metadata, path.stat().st_size)
    images = [name for name in schema.names if _is_image(schema.field(name).type)]
    if len(images) > 1:
        raise Failure(Code.DATASET_BAD, f"The file has several columns of bytes ({', '.join(images)}). Keep one image.")
    label = next((name for name in LABEL_NAMES if name in schema.names), None)
    wanted = [name for name in schema.names if not images or name in (images[0], label, "split")]
    first = next(_batches(file, wanted, 1), None)
    if first is None:
        raise ValueError("no rows are there")
    columns = {
        name: _column(first.column(name), name, text=name in (label, "split")) for name in wanted if name not in images
    }
    table = Table(columns, path.stat().st_size)
    pictures = _Images() if images else None
    row = 0
    for batch in _batches(file, wanted, IMAGE_ROWS if images else rows_in(columns, BLOCK_BYTES)):
        table.append({name: _values(batch.column(name), name, column, row) for name, column in columns.items()})
        if pictures is not None:
            pictures.append(batch.column(images[0]), images[0], row)
        row += batch.num_rows
    if row != file.metadata.num_rows:
        raise ValueError(f"{row} of {file.metadata.num_rows} rows are there")
    arrays, class_names = table.arrays()
    ignored = [name for name in schema.names if name not in wanted]
    return arrays, pictures.pictures() if pictures is not None else None, class_names, ignored


def _check_compression(metadata: pq.FileMetaData, stored: int) -> None:
    """By the groups' own word, before anything is read; `Table` counts what comes. What the file says of single columns
    ends the process where it is damaged."""
    large = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if large > max(FREE_BYTES, MAX_RATIO * stored):
        raise Failure(
            Code.DATASET_BAD,
            f"The columns are compressed {large // max(1, stored)} times, more than {MAX_RATIO}; write them without "
            "compression.",
        )


def _batches(file: pq.ParquetFile, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    batches: Iterator[pa.RecordBatch] = file.iter_batches(batch_size=rows, columns=names, use_threads=False)
    return batches


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_bytes(kind.field(place).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(values: pa.Array, name: str, *, text: bool) -> Column:
    """What the column is, by its first row. Raises Failure(DATASET_BAD) for types that are not read."""
    kind = values.type
    if text and _is_text(kind):
        return Column(np.dtype("U"), ())
    shape: list[int] = []
    _check_nulls(values, name, 0)
    while _is_list(values.type) and len(shape) < MAX_DEPTH:
        values = values.flatten()
        shape.append(len(values) // max(1, int(np.prod(shape))))
    numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
    if isinstance(kind, pa.BaseExtensionType) or not numeric:
        raise Failure(
            Code.DATASET_BAD,
            f"The column {name!r} is {kind}; write numbers, lists of numbers, or images as bytes, or leave it out.",
            where=name,
        )
    return Column(np.dtype(values.type.to_pandas_dtype()), tuple(shape))


def _values(values: pa.Array, name: str, column: Column, row: int) -> Array:
    """[rows, *shape] of a batch that begins at `row`."""
    _check_nulls(values, name, row)
    if column.dtype.kind == "U":
        return np.array(values.cast(pa.large_string()).to_pylist())
    count = len(values)
    for size in column.shape:
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if (lengths != size).any():
            other = int(lengths[lengths != size][0])
            raise Failure(
                Code.DATASET_BAD,
                f"The column {name!r} has lists of {size} and of {other} values, near row {row}. Give all one length.",
                where=name,
            )
        values = values.flatten()
        _check_nulls(values, name, row)
    numbers: Array = values.to_numpy(zero_copy_only=False)
    return numbers.astype(column.dtype, copy=False).reshape(count, *column.shape)


def _check_nulls(values: pa.Array, name: str, row: int) -> None:
    if values.null_count:
        raise Failure(
            Code.DATASET_BAD,
            f"The column {name!r} has a null near row {row}; fill it or drop the row.",
            where=name,
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


class _Images:
    """The bytes of images, one after the other in a scratch file."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="modelpress-images-")  # noqa: SIM115
        self._sizes: list[int] = []

    def append(self, values: pa.Array, name: str, row: int) -> None:
        _check_nulls(values, name, row)
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
            _check_nulls(values, name, row)
        for value in values:
            content: Any = value.as_buffer()
            with scratch():
                self._file.write(content)
            self._sizes.append(len(content))

    def pictures(self) -> SlicedPictures:
        with scratch():
            self._file.flush()
        ends = np.cumsum(self._sizes, dtype=np.int64)
        names = [f"row {index}" for index in range(len(ends))]
        starts = (ends - self._sizes).tolist()
        return SlicedPictures(Path(self._file.name), names, starts, self._sizes, scratch=self._file)
