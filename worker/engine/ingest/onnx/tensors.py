"""Tensors of an ONNX file. Sizes are checked against the bytes before any tensor is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from worker.engine.ingest.rejected import rejected, shown
from worker.engine.ingest.sizes import empty_tensor

MAXIMUM_RANK = 8

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Element types that are read. Texts, complex numbers, 8-bit floats and wide unsigned integers are not."""

_FIELDS: dict[torch.dtype, tuple[str, type[np.generic]]] = {
    torch.float32: ("float_data", np.float32),
    torch.uint8: ("int32_data", np.uint8),
    torch.int8: ("int32_data", np.int8),
    torch.int16: ("int32_data", np.int16),
    torch.int32: ("int32_data", np.int32),
    torch.int64: ("int64_data", np.int64),
    torch.bool: ("int32_data", np.bool_),
    torch.float16: ("int32_data", np.uint16),
    torch.float64: ("double_data", np.float64),
    torch.bfloat16: ("int32_data", np.uint16),
}
"""Where a tensor without raw bytes has its elements, and how one is stored (half floats as their bits)."""

External = Callable[[str, int, int], bytearray]
"""Reads so many bytes at an offset of a data file."""


def dtype_of_type(number: int, what: str) -> torch.dtype:
    """Raises `Failure` (network_rejected) for an element type that is not read."""
    if number not in DTYPES:
        known = number in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(number) if known else str(number)
        raise rejected(f"{what} has elements of type {name}, which are not read")
    return DTYPES[number]


def read_tensor(proto: TensorProto, external: External | None = None) -> Tensor:
    """The tensor, in memory of its own. Raises `Failure` (network_rejected) when its bytes are not its sizes'."""
    what = f"tensor {shown(proto.name)}" if proto.name else "a tensor"
    if proto.HasField("segment"):
        raise rejected(f"{what} is stored in segments")
    dtype = dtype_of_type(proto.data_type, what)
    sizes = tuple(proto.dims)
    if len(sizes) > MAXIMUM_RANK or any(not 0 <= size < 2**40 for size in sizes):
        raise rejected(f"{what} has the sizes {list(sizes)[:10]}")
    field, element = _FIELDS[dtype]
    count = math.prod(sizes)
    if proto.data_location == TensorProto.EXTERNAL:
        data = _read_external(proto, count * np.dtype(element).itemsize, what, external)
    elif proto.HasField("raw_data"):
        data = bytearray(proto.raw_data)
        if len(data) != count * np.dtype(element).itemsize or getattr(proto, field):
            raise rejected(f"{what} of the sizes {list(sizes)} has {len(data)} bytes")
    else:
        values = getattr(proto, field)
        if len(values) != count:
            raise rejected(f"{what} of the sizes {list(sizes)} has {len(values)} elements")
        data = bytearray(np.asarray(values).astype(element).tobytes())
    if count == 0:
        return empty_tensor(proto.name, sizes, dtype)
    if sys.byteorder != "little":
        raise rejected("ONNX files are read on little-endian machines only")
    if dtype == torch.bool:
        return (torch.frombuffer(data, dtype=torch.uint8) != 0).reshape(sizes)
    return torch.frombuffer(data, dtype=dtype).reshape(sizes)


def _read_external(proto: TensorProto, length: int, what: str, external: External | None) -> bytearray:
    if external is None:
        raise rejected(
            f"{what} is in another file (external data); send both as one tar: `tar cf network.tar NAME.onnx NAME.data`"
        )
    entries = {entry.key: entry.value for entry in proto.external_data}
    if len(entries) != len(proto.external_data) or not {"location"} <= set(entries) <= _ENTRIES:
        raise rejected(f"{what} does not say plainly where its data is")
    place = {key: entries.get(key, "") for key in ("offset", "length")}
    if any(value and not (value.isascii() and value.isdecimal() and len(value) < 19) for value in place.values()):
        raise rejected(f"{what} does not say plainly where its data is")
    if place["length"] and int(place["length"]) != length:
        raise rejected(f"{what} needs {length} bytes and has {place['length']}")
    return external(entries["location"], int(place["offset"] or 0), length)


_ENTRIES = {"location", "offset", "length", "checksum"}
