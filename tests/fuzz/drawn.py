"""HDF5 and Parquet files that their libraries write from whatever was drawn."""

from __future__ import annotations

import io
import random
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NAMES = ("x", "y", "split", "x0", "x1", "label", "image", "ä/ö", "a b", "")
ROWS = (0, 1, 2, 5, 12)
_H5_TYPES: tuple[Any, ...] = (
    *("f4", ">f8", "f2", "i1", ">i4", "i8", "u1", "u2", "u8", "?", "c8", "S4", "S0", "V3"),
    *([("a", "f4"), ("b", "i2")], ("f4", (2, 3)), np.longdouble),
    *(h5py.string_dtype(), h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.enum_dtype({"a": 1, "b": 2}, "i4")),
)
_LAYOUTS: tuple[dict[str, Any], ...] = (
    *({}, {"chunks": True}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "compression": "lzf"}),
    *({"chunks": True, "scaleoffset": 0}, {"chunks": True, "shuffle": True, "fletcher32": True}, {"track_times": True}),
    *({"maxshape": (None,)}, {"external": [("other", 0, 1 << 20)]}, {"fillvalue": 0}, {"compression": "szip"}),
)


def hdf5(choose: random.Random) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=choose.choice(("earliest", "latest", "v108"))) as file:
        for name in choose.sample(NAMES[:-1], choose.randint(1, 3)):
            try:
                _add(file, name, choose)
            except (TypeError, ValueError, OSError, RuntimeError, OverflowError, AttributeError):
                continue  # h5py itself takes no such combination
    return buffer.getvalue()


def _add(file: h5py.File, name: str, choose: random.Random) -> None:
    rows = choose.choice(ROWS)
    shape = (rows, *(choose.randint(0, 4) for _ in range(choose.randint(0, 3))))
    match choose.randrange(12):
        case 0:
            file[name] = choose.choice((h5py.SoftLink("/x"), h5py.ExternalLink("other", "/x"), h5py.Empty("f4")))
        case 1:
            file.create_group(name)["inside"] = np.zeros(3)
        case 2:
            layout = h5py.VirtualLayout(shape, "f4")
            file.create_virtual_dataset(name, layout, fillvalue=0)
        case 3:
            file[name] = np.dtype("f4")
        case 4:
            file[name] = choose.choice((3, 1.5, "text", [["train"] * rows]))
        case 5:
            texts = choose.choices(("train", "val", "test", "", "\udcff", "é" * 40, "other"), k=max(rows, 1))
            file.create_dataset(name, data=np.array([t.encode(errors="surrogateescape") for t in texts], "O"))
        case _:
            kind, layout = choose.choice(_H5_TYPES), choose.choice(_LAYOUTS)
            dataset = file.create_dataset(name, shape, kind, **layout)
            if choose.random() < 0.8 and "external" not in layout:  # the other file would be written
                dataset[...] = np.random.default_rng(choose.randrange(99)).integers(0, 3, shape)


_NUMBERS = (pa.int8(), pa.uint8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_())
_OTHERS = (
    *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(4), pa.date32(), pa.time64("us")),
    *(pa.timestamp("ms", "UTC"), pa.duration("s"), pa.decimal128(9, 2), pa.null(), pa.uuid(), pa.string_view()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.map_(pa.string(), pa.int32()), pa.month_day_nano_interval()),
    *(pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.struct([("a", pa.int32())]), pa.struct([])),
    *(pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]), pa.dictionary(pa.int8(), pa.float32())),
)


def parquet(choose: random.Random) -> bytes:
    rows, columns, names = choose.choice(ROWS), [], []
    for _ in range(choose.randint(1, 4)):
        try:
            columns.append(_column(_type(choose), rows, choose))
            names.append(choose.choice(NAMES))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue  # no such values of this type
    buffer = io.BytesIO()
    try:
        pq.write_table(
            pa.table(columns, names),
            buffer,
            row_group_size=choose.choice((1, 5, 100)),
            compression=choose.choice(("none", "snappy", "gzip", "zstd", "brotli", "lz4")),
            use_dictionary=choose.random() < 0.5,
            data_page_version=choose.choice(("1.0", "2.0")),
            store_schema=choose.random() < 0.7,
        )
    except (pa.ArrowException, ValueError):
        return b"PAR1PAR1"  # Arrow has types that Parquet has not
    return buffer.getvalue()


def _type(choose: random.Random, depth: int = 0) -> pa.DataType:
    """No lists of fixed size 0: writing them ends the process."""
    if depth < 10 and choose.random() < 0.35:
        inner = _type(choose, depth + 1)
        return choose.choice((pa.list_(inner), pa.large_list(inner), pa.list_(inner, choose.randint(1, 3))))
    return choose.choice(_NUMBERS if choose.random() < 0.6 else _OTHERS)


def _column(kind: pa.DataType, rows: int, choose: random.Random) -> pa.Array:
    few = choose.randint(0, 3)
    return pa.array([_value(kind, few, choose) for _ in range(rows)], kind)


def _value(kind: pa.DataType, few: int, choose: random.Random) -> Any:
    """A value of the type; lists have `few` values, mostly."""
    if choose.random() < 0.02:
        return None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_value(kind.value_type, few, choose) for _ in range(few if choose.random() < 0.95 else few + 1)]
    if pa.types.is_fixed_size_list(kind):
        return [_value(kind.value_type, few, choose) for _ in range(kind.list_size)]
    if pa.types.is_struct(kind):
        return {field.name: _value(field.type, few, choose) for field in kind}
    if pa.types.is_map(kind):
        return [("a", 1)]
    if pa.types.is_dictionary(kind):
        return _value(kind.value_type, few, choose)
    if "string" in str(kind):
        return choose.choice(("train", "val", "test", "", "é", "\0", "a" * 40))
    if "binary" in str(kind):
        return choose.choice((b"\x89PNG", b"", b"four", b"\xff\xfe"))
    if pa.types.is_floating(kind):
        return choose.choice((0.0, 1.5, float("nan"), float("inf")))
    return choose.choice((0, 1, 2, None))
