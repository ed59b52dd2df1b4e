"""Crafted files of weights. Numbers in the comments are those of the table of bad inputs in `RELIABILITY.md`."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from models.errors import Code
from tests.networks import resnet18


def saved(value: Any, **options: Any) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def changed(content: bytes, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with other, or more, members, written anew."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        root = old.namelist()[0].partition("/")[0]
        for name in dict.fromkeys([*old.namelist(), *(f"{root}/{name}" for name in members)]):
            new.writestr(name, members.get(name.partition("/")[2], old.read(name) if name in old.namelist() else b""))
    return buffer.getvalue()


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def _pickled(value: Any, protocol: int = 2) -> bytes:
    return changed(saved({"w": torch.ones(2)}), {"data.pkl": pickle.dumps(value, protocol)})


_WEIGHT = b"\x80\x02}X\x01\x00\x00\x00w"


def tensor_of(storage: bytes, count: int, sizes: tuple[int, ...], strides: tuple[int, ...], at: int = 0) -> bytes:
    """A state dict with the tensor `w`, described by hand."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(16, "little", signed=True)
        return b"\x8a\x10" + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    text = b"X\x07\x00\x00\x00storage"
    identity = b"(" + text + b"c" + storage + b"\n" + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(at) + numbers(sizes) + numbers(strides)
    document = _WEIGHT + call + b"\x89ccollections\nOrderedDict\n)RtRs."
    return changed(saved({"w": torch.ones(2)}), {"data.pkl": document})


def _forged_csr() -> bytes:
    """Loads in torch with weights_only=True, and `torch.mm` with it then reads where nothing is."""
    wild = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2**40]), torch.tensor([0, 1]), torch.ones(2), check_invariants=False
    )
    return saved({"w": wild})


def safetensors_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class Crafted:
    """`make` gets the path of a canary that nothing may create; `says` stands in the message."""

    name: str
    code: Code
    says: str
    make: Callable[[Path], bytes]


CHECKPOINTS = (
    Crafted("call", Code.UNSAFE_PICKLE, "open", lambda canary: _pickled({"w": _Opens(canary)})),  # 35
    Crafted("call_4", Code.UNSAFE_PICKLE, "open", lambda canary: _pickled({"w": _Opens(canary)}, 4)),
    Crafted(
        "call_in_optimizer",
        Code.UNSAFE_PICKLE,
        "open",
        lambda canary: _pickled({"state_dict": {}, "optimizer": {"state": [_Opens(canary)]}}),
    ),
    Crafted("forged_csr", Code.SPARSE_NOT_SUPPORTED, "sparse", lambda _: _forged_csr()),  # 36
    Crafted("sparse", Code.SPARSE_NOT_SUPPORTED, "to_dense", lambda _: saved({"w": torch.eye(3).to_sparse()})),
    Crafted(
        "deflated",  # 37
        Code.COMPRESSED_RECORD,
        "compressed",
        lambda _: changed(saved({"w": torch.zeros(1 << 20)}), {}, zipfile.ZIP_DEFLATED),
    ),
    Crafted(
        "stride_zero",  # 38
        Code.LOGICAL_SIZE_EXCEEDS_STORAGE,
        "claims",
        lambda _: tensor_of(b"torch\nFloatStorage", 2, (1 << 20, 1 << 20), (0, 0)),
    ),
    Crafted(
        "offset", Code.LOGICAL_SIZE_EXCEEDS_STORAGE, "3", lambda _: tensor_of(b"torch\nFloatStorage", 2, (2,), (1,), 2)
    ),
    Crafted(
        "storage_larger_than_its_bytes",
        Code.BAD_ARCHIVE,
        "8 bytes",
        lambda _: tensor_of(b"torch\nFloatStorage", 1 << 40, (1 << 40,), (1,)),
    ),
    Crafted(
        "empty_and_huge",
        Code.NETWORK_REJECTED,
        "empty",
        lambda _: tensor_of(b"torch\nFloatStorage", 2, (0, 1 << 62), (1, 1)),
    ),
    Crafted(
        "negative_stride", Code.NETWORK_REJECTED, "strides", lambda _: tensor_of(b"torch\nFloatStorage", 2, (2,), (-1,))
    ),
    Crafted("no_storage", Code.UNSAFE_PICKLE, "os.system", lambda _: tensor_of(b"os\nsystem", 2, (2,), (1,))),
    Crafted(
        "nested",  # 39
        Code.TOO_DEEP,
        "100",
        lambda _: changed(saved({"w": 1}), {"data.pkl": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."}),
    ),
    Crafted(
        "nested_tuples",
        Code.TOO_DEEP,
        "100",
        lambda _: changed(saved({"w": 1}), {"data.pkl": b"\x80\x02)" + b"\x85" * 200_000 + b"."}),
    ),
    Crafted(
        "nested_key",
        Code.NETWORK_REJECTED,
        "key",
        lambda _: changed(saved({"w": 1}), {"data.pkl": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."}),
    ),
    Crafted(
        "legacy",  # 40
        Code.LEGACY_FORMAT,
        "1.6",
        lambda _: saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False),
    ),
    Crafted("module", Code.MODULE_PICKLE_NOT_SUPPORTED, "state_dict", lambda _: saved(resnet18()[0])),  # 41
    Crafted("torchscript", Code.TORCHSCRIPT_NOT_SUPPORTED, "TorchScript", lambda _: _script()),  # 42
    Crafted("plain_pickle", Code.UNSAFE_PICKLE, "pickle", lambda _: pickle.dumps({"w": 1})),
    Crafted("extra_member", Code.NETWORK_REJECTED, "x.so", lambda _: changed(saved({"w": 1}), {"x.so": b"\x7fELF"})),
    Crafted("big_endian", Code.NETWORK_REJECTED, "endian", lambda _: changed(saved({"w": 1}), {"byteorder": b"big"})),
    Crafted("no_pickle", Code.NETWORK_REJECTED, "pickle", lambda _: changed(saved({"w": 1}), {"data.pkl": b""})),
    Crafted("cut_pickle", Code.NETWORK_REJECTED, "broken", lambda _: changed(saved({"w": 1}), {"data.pkl": _WEIGHT})),
    Crafted(
        "underflow", Code.NETWORK_REJECTED, "broken", lambda _: changed(saved({"w": 1}), {"data.pkl": b"\x80\x02R."})
    ),
    Crafted("no_tensors", Code.NETWORK_REJECTED, "no tensors", lambda _: saved({"epoch": 3})),
    Crafted("a_tensor", Code.NETWORK_REJECTED, "no tensors", lambda _: saved(torch.ones(3))),
    Crafted("quantized", Code.UNSAFE_PICKLE, "", lambda _: _pickled(len)),
    Crafted("header_of_2_64", Code.UNKNOWN_FORMAT, "", lambda _: safetensors_of(b"{", length=2**64 - 1)),  # 54
    Crafted("header_cut", Code.NETWORK_REJECTED, "safetensors", lambda _: safetensors_of(b'{"w":', b" " * 4)),
    Crafted(
        "header_over_100_MB",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of(b"{}" + b" " * 100_000_000),
    ),
    Crafted(
        "overlap",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, bytes(12)),
    ),
    Crafted(
        "gap",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, bytes(12)),
    ),
    Crafted(
        "trailing", Code.NETWORK_REJECTED, "safetensors", lambda _: save({"w": torch.ones(2)}) + b"PK\x03\x04"
    ),  # 26
    Crafted(
        "shape_is_not_bytes",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of({"w": _entry([3], 0, 8)}, bytes(8)),
    ),
    Crafted(
        "shape_overflows",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of({"w": _entry([2**33, 2**33], 0, 8)}, bytes(8)),
    ),
    Crafted(
        "key_twice",
        Code.NETWORK_REJECTED,
        "twice",
        lambda _: safetensors_of(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
    ),
    Crafted(
        "unknown_type",
        Code.NETWORK_REJECTED,
        "safetensors",
        lambda _: safetensors_of({"w": _entry([1], 0, 4, "Q4")}, bytes(4)),
    ),
    Crafted(
        "complex",
        Code.NETWORK_REJECTED,
        "C64",
        lambda _: save({"w": torch.ones(2, dtype=torch.complex64)}),
    ),
    Crafted("not_utf_8", Code.NETWORK_REJECTED, "safetensors", lambda _: safetensors_of(b'{"\xff": 1}')),
    Crafted(
        "empty_2_62",  # 56
        Code.NETWORK_REJECTED,
        "empty",
        lambda _: safetensors_of({"w": _entry([0, 2**62], 0, 0)}),
    ),
    Crafted(
        "other_names",  # 57
        Code.NETWORK_REJECTED,
        "missing",
        lambda _: save({f"layer{i}": torch.ones(2) for i in range(50)}),
    ),
    Crafted("path_as_name", Code.NETWORK_REJECTED, "../../etc/x", lambda _: save({"../../etc/x": torch.ones(2)})),  # 55
)
