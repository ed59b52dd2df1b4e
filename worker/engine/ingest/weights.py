"""Tensors from raw bytes. Sizes, strides and offsets are checked against the bytes before any tensor is made."""

from __future__ import annotations

import io
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.ingest.archive import (
    BYTE_ORDER,
    CONSTANTS,
    CONSTANTS_CONFIG,
    MAXIMUM_JSON_BYTES,
    OLD_CONSTANTS,
    OLD_WEIGHTS,
    SAVED_CONSTANTS,
    SAVED_WEIGHTS,
    WEIGHTS,
    WEIGHTS_CONFIG,
    Archive,
)
from worker.engine.ingest.named.pth import is_tensor, read_pth, trainable
from worker.engine.ingest.rejected import rejected, shown
from worker.engine.ingest.schema import Payload, PayloadConfig, SymbolicInt, TensorMeta, parse
from worker.engine.ingest.sizes import empty_tensor

DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""torch's serialized ScalarType numbers. Wider complex, 8-bit float and unsigned wide types are not read."""

STRIDED = 7
MAXIMUM_RANK = 8

_FILE = re.compile(r"(weight|tensor)_\d{1,7}")


@dataclass(frozen=True)
class Tensors:
    """`values` by name as in the file; tied parameters are one object. `parameters` are the names of parameters."""

    values: dict[str, Tensor]
    parameters: frozenset[str]
    constants: frozenset[str]


def read_tensors(archive: Archive) -> Tensors:
    """All weights and constants. Raises `Failure` (network_rejected, bad_archive)."""
    if (BYTE_ORDER in archive and archive.read(BYTE_ORDER, 16) != b"little") or sys.byteorder != "little":
        raise rejected("the file was written on a big-endian machine; export it on a little-endian one")
    for saved in ((OLD_WEIGHTS, OLD_CONSTANTS), (SAVED_WEIGHTS, SAVED_CONSTANTS)):
        if any(name in archive for name in saved):
            if WEIGHTS_CONFIG in archive or CONSTANTS_CONFIG in archive:
                raise rejected("the file keeps tensors in two ways; no version of torch writes that")
            return _saved_tensors(*(archive.read(name) for name in saved))
    weights = parse(PayloadConfig, archive.read(WEIGHTS_CONFIG, MAXIMUM_JSON_BYTES), WEIGHTS_CONFIG).config
    constants = parse(PayloadConfig, archive.read(CONSTANTS_CONFIG, MAXIMUM_JSON_BYTES), CONSTANTS_CONFIG).config
    reader = _Reader(archive)
    for name, payload in weights.items():
        reader.add(name, payload, WEIGHTS)
    for name, payload in constants.items():
        if name in weights:
            raise rejected(f"{shown(name)} is a weight and a constant at once")
        reader.add(name, payload, CONSTANTS)
    return Tensors(reader.values, frozenset(reader.parameters), frozenset(constants))


def _saved_tensors(weights: bytes, constants: bytes) -> Tensors:
    """From the two files of torch.save that torch before 2.9 kept in a `.pt2`. Their pickles are parsed, never run."""
    values: dict[str, Tensor] = {}
    parameters: dict[int, nn.Parameter] = {}
    with read_pth(io.BytesIO(weights)) as saved:
        for name, value in _by_name(saved.root).items():
            values[name] = tensor = saved.tensor(name, value)
            if (learns := trainable(value)) is not None:
                values[name] = parameters.setdefault(id(tensor), _parameter(name, tensor, learns))
    with read_pth(io.BytesIO(constants)) as saved:
        found = _by_name(saved.root)
        for name, value in found.items():
            if name in values:
                raise rejected(f"{shown(name)} is a weight and a constant at once")
            values[name] = saved.tensor(name, value)
    named = frozenset(name for name, value in values.items() if isinstance(value, nn.Parameter))
    return Tensors(values, named, frozenset(found))


def _by_name(root: Any) -> dict[str, Any]:
    if not isinstance(root, dict) or not all(
        isinstance(name, str) and is_tensor(value) for name, value in root.items()
    ):
        raise rejected("the file keeps something else than tensors by name where its weights and constants should be")
    return root


class _Reader:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._made: dict[tuple[object, ...], Tensor] = {}
        self._used: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.parameters: set[str] = set()

    def add(self, name: str, payload: Payload, folder: str) -> None:
        if payload.use_pickle or payload.tensor_meta is None:
            raise rejected(f"tensor {shown(name)} is stored as a pickle, which can run code when read", shown(name))
        if not _FILE.fullmatch(payload.path_name):
            raise rejected(f"tensor {shown(name)} points at {shown(payload.path_name)}, which is no tensor file")
        layout = _layout(name, payload.tensor_meta)
        key = (folder, payload.path_name, payload.is_param, *layout)
        tensor = self._made.get(key)
        if tensor is None:
            member = folder + payload.path_name
            content = self._archive.mapped(member)
            if member in self._used:  # each tensor has memory of its own
                content = memoryview(bytearray(content))
            self._used.add(member)
            tensor = _tensor(name, content, *layout)
            if payload.is_param:
                tensor = _parameter(name, tensor, payload.tensor_meta.requires_grad)
            self._made[key] = tensor
        self.values[name] = tensor
        if payload.is_param:
            self.parameters.add(name)


Layout = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]


def _layout(name: str, meta: TensorMeta) -> Layout:
    if meta.layout != STRIDED:
        raise rejected(f"tensor {shown(name)} is sparse; store it dense with `.to_dense()`", shown(name))
    dtype = DTYPES.get(meta.dtype)
    if dtype is None:
        raise rejected(f"tensor {shown(name)} has element type {meta.dtype}, which is not read", shown(name))
    sizes = tuple(_size(name, size) for size in meta.sizes)
    strides = tuple(_size(name, stride) for stride in meta.strides)
    if len(sizes) != len(strides) or len(sizes) > MAXIMUM_RANK:
        raise rejected(f"tensor {shown(name)} has {len(sizes)} sizes and {len(strides)} strides", shown(name))
    return dtype, sizes, strides, _size(name, meta.storage_offset)


def _size(name: str, size: SymbolicInt) -> int:
    if size.as_int is None or size.as_int < 0:
        raise rejected(f"tensor {shown(name)} has a size, stride or offset that is not a whole number", shown(name))
    return size.as_int


def _tensor(
    name: str, raw: memoryview, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], at: int
) -> Tensor:
    count = math.prod(sizes)
    held = len(raw) // dtype.itemsize
    if count == 0:
        return empty_tensor(name, sizes, dtype)
    last = at + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if count > held or last >= held or len(raw) % dtype.itemsize:
        raise rejected(
            f"tensor {shown(name)} claims {count} elements up to position {last}, but its bytes hold {held}",
            shown(name),
        )
    flat = torch.frombuffer(raw, dtype=dtype)
    tensor = flat.as_strided(sizes, strides, at)
    if count == held and tensor.is_contiguous() and flat.data_ptr() % dtype.itemsize == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _parameter(name: str, tensor: Tensor, requires_grad: bool) -> nn.Parameter:
    if tensor.is_complex():
        raise rejected(
            f"parameter {shown(name)} holds complex numbers; keep real and imaginary parts in the last dimension of a "
            "real parameter, and join them with `torch.view_as_complex`",
            shown(name),
        )
    if not tensor.is_floating_point():
        raise rejected(
            f"parameter {shown(name)} holds {_dtype_name(tensor)}: the network is already quantized; "
            "export the floating-point network",
            shown(name),
        )
    return nn.Parameter(tensor, requires_grad=requires_grad)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
