"""The tensors of a `torch.save` file. Neither `torch.load` nor any unpickler opens it.

Layout: torch/serialization.py `_save` (since torch 1.6): a zip file of stored members, one pickle that names the
tensors, one member of raw bytes for each storage.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import torch
from torch import Tensor

from models.errors import Code, Failure
from worker.engine.ingest.container import StoredZip
from worker.engine.ingest.named.inert_pickle import DICTIONARIES, Call, Global, Stored, parse
from worker.engine.ingest.rejected import bad_archive, rejected, shown
from worker.engine.ingest.sizes import empty_tensor

MAXIMUM_PICKLE_BYTES = 32 << 20
MAXIMUM_RANK = 8
_STATE_DICT = "save `module.state_dict()` alone with torch.save, or as safetensors"

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETERS = (Global("torch._utils", "_rebuild_parameter"), Global("torch._utils", "_rebuild_parameter_with_state"))
_METADATA = {
    "argparse": ("Namespace",),
    "_codecs": ("encode",),
    "collections": ("namedtuple",),
    "datetime": ("datetime", "timedelta"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "pathlib": ("Path", "PosixPath"),
    "torch": ("Size", "device", *(str(dtype).removeprefix("torch.") for dtype in STORAGES.values())),
    "torch.serialization": ("_get_layout",),
    "builtins": ("set",),
    "__builtin__": ("set",),
}
"""What training scripts keep beside the weights. It is never made, only passed over."""
_KNOWN = frozenset(
    {
        *DICTIONARIES,
        _TENSOR,
        *_PARAMETERS,
        *(Global("torch", name) for name in STORAGES),
        *(Global(module, name) for module, names in _METADATA.items() for name in names),
    }
)
_SPARSE = re.compile(r"torch\._utils\._rebuild_sparse.*")
_UNREADABLE = {
    "torch._utils._rebuild_qtensor": "the network is quantized already; send the one from before",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor is on the device `meta` and has no values",
    "torch.storage.UntypedStorage": f"it keeps storages without an element type; {_STATE_DICT}",
    "torch._utils._rebuild_tensor_v3": "a tensor has an element type that is not read",
}


class TorchSave(StoredZip):
    """The members of a `torch.save` file."""

    compressed = Code.COMPRESSED_RECORD

    def check_name(self, name: str) -> None:
        if name == "constants.pkl" or name.startswith("code/"):
            raise Failure(
                Code.TORCHSCRIPT_NOT_SUPPORTED,
                "the file is a TorchScript archive, which can run code when it is loaded; " + _STATE_DICT,
            )
        if not re.fullmatch(
            r"data\.pkl|data/\d{1,9}|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id",
            name,
        ):
            raise rejected(f"archive member {shown(name)} does not belong in a file of torch.save")


class Saved:
    """What `torch.save` was given. Where `root` has a value that `is_tensor`, `tensor` reads it."""

    def __init__(self, root: Any, archive: TorchSave) -> None:
        self.root = root
        self._archive = archive
        self._made: dict[_Place, Tensor] = {}
        self._storage: tuple[str, Tensor] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def unread_bytes(self) -> int:
        """Of the storages that no tensor was asked for of."""
        read = {f"data/{place.key}" for place in self._made}
        members = self._archive.members.items()
        return sum(info.file_size for name, info in members if name.startswith("data/") and name not in read)

    def tensor(self, name: str, value: Call) -> Tensor:
        """Raises `Failure`. The same values asked for twice, as by tied parameters, are one tensor."""
        place = _place(name, value)
        if place not in self._made:
            self._made[place] = self._read(name, place)
        return self._made[place]

    def _read(self, name: str, place: _Place) -> Tensor:
        member, sizes = f"data/{place.key}", place.sizes
        info = self._archive.members.get(member)
        if info is None or info.file_size != place.held * place.dtype.itemsize:
            there = "no bytes" if info is None else f"{info.file_size} bytes"
            raise bad_archive(
                f"tensor {shown(name)} should lie in {place.held} elements of {member}, which has {there}"
            )
        count = math.prod(sizes)
        if count == 0:
            return empty_tensor(name, sizes, place.dtype)
        last = place.at + sum((size - 1) * stride for size, stride in zip(sizes, place.strides, strict=True))
        if count > place.held or last >= place.held:
            raise Failure(
                Code.LOGICAL_SIZE_EXCEEDS_STORAGE,
                f"tensor {shown(name)} claims {count} elements up to position {last}, its storage holds {place.held}",
                where=shown(name),
            )
        if self._storage is None or self._storage[0] != member:
            self._storage = member, torch.frombuffer(bytearray(self._archive.read(member)), dtype=torch.uint8)
        flat = self._storage[1].view(place.dtype)
        return flat.as_strided(sizes, place.strides, place.at).clone(memory_format=torch.contiguous_format)


class _Place(NamedTuple):
    """`at` and `strides` count elements, `held` those of the whole storage."""

    key: str
    dtype: torch.dtype
    held: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    at: int


def read_pth(source: Path | BinaryIO) -> Saved:
    """Raises `Failure`: bad_archive, compressed_record, torchscript_not_supported, unsafe_pickle, sparse_not_supported,
    module_pickle_not_supported, too_deep, network_rejected. Tensors are only read when they are asked for."""
    archive = TorchSave(source)
    order = archive.read("byteorder", 16) if "byteorder" in archive else b"little"
    if order != b"little" or sys.byteorder != "little":
        raise rejected("the file was written on a big-endian machine; save it on a little-endian one")
    return Saved(parse(archive.read("data.pkl", MAXIMUM_PICKLE_BYTES), _KNOWN.__contains__, _refusal), archive)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and value.callee in (_TENSOR, *_PARAMETERS)


def trainable(value: Call) -> bool | None:
    """Whether a parameter is trained; None for a tensor that is no parameter."""
    return bool(value.arguments[1]) if value.callee in _PARAMETERS and len(value.arguments) > 1 else None


def _refusal(found: Global, rest: Iterator[Global]) -> Failure:
    name = str(found)
    if _SPARSE.fullmatch(name):
        return Failure(Code.SPARSE_NOT_SUPPORTED, "the file holds sparse tensors; store them dense with `.to_dense()`")
    if name in _UNREADABLE:
        return rejected(f"the file cannot be read: {_UNREADABLE[name]}")
    if any(each.module.startswith("torch.nn.modules") for each in itertools.chain([found], rest)):
        return Failure(
            Code.MODULE_PICKLE_NOT_SUPPORTED,
            f"the file is a whole module, pickled with its class {shown(name)}, whose code would have to run; "
            f"{_STATE_DICT}",
        )
    return Failure(
        Code.UNSAFE_PICKLE, f"the pickle in the file names {shown(name)}, which would run code when read; {_STATE_DICT}"
    )


def _place(name: str, value: Any) -> _Place:
    while isinstance(value, Call) and value.callee in _PARAMETERS and value.arguments:
        value = value.arguments[0]
    match value:
        case Call(
            callee=callee,
            arguments=(
                Stored(key=("storage", Global(module="torch", name=storage), str(key), _, int(held))),
                int(at),
                tuple(sizes),
                tuple(strides),
                *_,
            ),
        ) if callee == _TENSOR and storage in STORAGES and re.fullmatch(r"[0-9]{1,9}", key):
            pass
        case _:
            raise rejected(f"tensor {shown(name)} is not described as torch.save does", shown(name))
    wrong = len(sizes) != len(strides) or len(sizes) > MAXIMUM_RANK
    if wrong or any(type(number) is not int or not 0 <= number < 2**63 for number in (at, *sizes, *strides)):
        raise rejected(f"tensor {shown(name)} has sizes or strides that are none", shown(name))
    return _Place(key, STORAGES[storage], held, sizes, strides, at)
