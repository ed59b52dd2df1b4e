"""The tensors of safetensors bytes: parsed by the safetensors library, whose checks cover the bytes exactly once."""

from __future__ import annotations

import json
import sys

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from worker.engine.ingest.rejected import rejected, shown
from worker.engine.ingest.sizes import empty_tensor

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
MAXIMUM_RANK = 8


def read_safetensors(content: bytes, file: str = "the file") -> dict[str, Tensor]:
    """By name, which is never more than a name. Raises `Failure` (network_rejected)."""
    if sys.byteorder != "little":
        raise rejected("this machine is big-endian; safetensors are little-endian")
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        reason = ascii(str(error)[:200])[1:-1]
        raise rejected(f"{file} is not a whole safetensors file ({reason}); save it again") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=list)
    if len(header) != len({name for name, _ in header}):
        raise rejected(f"{file} describes a tensor twice")
    return {name: _tensor(name, **entry) for name, entry in entries}


def _tensor(name: str, dtype: str, shape: list[int], data: bytearray) -> Tensor:
    if dtype not in DTYPES:
        raise rejected(f"tensor {shown(name)} has the element type {dtype}, which is not read", shown(name))
    if len(shape) > MAXIMUM_RANK:
        raise rejected(f"tensor {shown(name)} has {len(shape)} dimensions; {MAXIMUM_RANK} are read", shown(name))
    if 0 in shape:
        return empty_tensor(name, shape, DTYPES[dtype])
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)
