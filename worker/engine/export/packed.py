"""A graph as one packed safetensors file: as small as its zeros and codes allow, without losing a bit.

What the file looks like is in `measure/unpack.py`. A weight with zeros is a bit for each item and the items that are
not zero, once that is smaller (Han et al., 2016, store gaps in place of bits: never smaller here once both are
deflated). Items are stored plane by plane because the signs and exponents of trained weights repeat and deflate by half
or more, while mantissas are noise: measured, that takes another sixth off float32. A weight of few bits is its codes
and tables; the codes are deflated where that helps, packed or a byte each, whichever gets smaller: its Huffman codes
take single codes apart only where bytes do (Han et al., 2016, section 4, code them so).
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, fx

from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.coded import Coded, is_held
from worker.engine.ingest.weights import DTYPES
from worker.engine.measure.unpack import (
    CODECS,
    DENSE,
    FORMAT,
    LAYOUT,
    MANIFEST,
    PROGRAM,
    SMALL,
    Bytes,
    entry_of,
)
from worker.engine.subject import Subject

_SAMPLE = 1 << 16
"""Bytes of a plane that are deflated to see whether the rest is worth the time."""
_WORTH = 0.95
_ROW_BYTES = 40
"""About what the manifest needs to say more of a weight that is not stored as it is."""
_SMALL_BYTES = 2048
"""Less has no entry of its own: that takes about 80 bytes of the header, which nothing deflates."""

_Parts = dict[str, Tensor]


def export_packed(graph: fx.GraphModule, subject: Subject, path: Path) -> None:
    """Write `graph` (`subject.network()` or `subject.original`) as `export_pt2` would, and pack that."""
    with tempfile.TemporaryDirectory(prefix="packing-", dir=path.parent) as scratch:
        archive = Path(scratch) / "network.pt2"
        export_pt2(graph, replace(subject, coded={}), archive)
        pack(archive, path, {name: each for name, each in subject.coded.items() if is_held(graph, name, each)})


@dataclass(frozen=True)
class _Weight:
    """One file of the archive, and how the first tensor in it is named and laid out."""

    file: str
    name: str
    values: Tensor


def pack(archive: Path, path: Path, coded: Mapping[str, Coded] = MappingProxyType({})) -> None:
    """Write the `.pt2` at `archive`, one that `export_pt2` made, as a packed file. The values of `coded`, by the name
    of the weight, are in the archive."""
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    small: list[Tensor] = []
    with zipfile.ZipFile(archive) as source:
        folder, weights = _weights(source)
        for weight in weights:
            chosen, parts, said = _parts(weight, coded)
            row: dict[str, Any] = {"file": weight.file, "name": weight.name, **said}
            codec = CODECS[chosen]
            for part in codec.parts:  # in the order they are read in
                values = parts[part]
                stored, sizes = _deflated(values)
                if sizes is not None:
                    row.setdefault("planes", {})[part] = {"items": values.numel(), "bytes": sizes}
                if stored.nbytes >= _SMALL_BYTES:
                    tensors[entry_of(weight.name, part, codec)] = stored
                    continue
                small.append(torch.from_numpy(_bytes(stored)).flatten())
                row.setdefault("small", {})[part] = stored.nbytes
            rows.append(row)
        tensors[PROGRAM] = _program(source, {f"{folder}/{weight.file}" for weight in weights})
    manifest = json.dumps({"folder": folder, "weights": rows}, separators=(",", ":")).encode()
    tensors[MANIFEST] = _as_tensor(zlib.compress(manifest, 9))
    tensors[SMALL] = torch.cat(small) if small else torch.empty(0, dtype=torch.uint8)
    save_file(tensors, path, {FORMAT: LAYOUT})


def _weights(source: zipfile.ZipFile) -> tuple[str, list[_Weight]]:
    """The folder of the weights and every file in it. Tensors that share a file share its bytes; the largest of them
    says what these are."""
    (configuration,) = [name for name in source.namelist() if name.endswith("weights_config.json")]
    folder = configuration.rpartition("/")[0]
    found: dict[str, tuple[str, Any]] = {}
    for name, row in json.loads(source.read(configuration))["config"].items():
        file = row["path_name"]
        if file not in found or _count(row) > _count(found[file][1]):
            found[file] = (name, row)
    tensors = {file: _tensor(source.read(f"{folder}/{file}"), row) for file, (_, row) in found.items()}
    return folder, [_Weight(file, name, tensors[file]) for file, (name, _) in found.items()]


def _sizes(row: Mapping[str, Any]) -> list[int]:
    return [size["as_int"] for size in row["tensor_meta"]["sizes"]]


def _count(row: Mapping[str, Any]) -> int:
    return math.prod(_sizes(row))


def _tensor(content: bytes, row: Mapping[str, Any]) -> Tensor:
    """The items of a file under their own type, in the tensor's shape where that is all there is in it."""
    dtype = DTYPES[row["tensor_meta"]["dtype"]]
    if not content:
        return torch.empty(0, dtype=dtype)
    values = torch.frombuffer(bytearray(content), dtype=dtype)
    sizes = _sizes(row)
    strides = [stride["as_int"] for stride in row["tensor_meta"]["strides"]]
    whole = values.numel() == _count(row) and torch.empty(sizes, device="meta").stride() == tuple(strides)
    return values.reshape(sizes) if whole else values


def _parts(weight: _Weight, coded: Mapping[str, Coded]) -> tuple[str, _Parts, dict[str, Any]]:
    """The codec, its parts, and what its row in the manifest says beside the names."""
    own = _codes_of(weight, coded)
    if own is None:
        chosen = _choice(weight.values)
        sizes = {"items": weight.values.numel(), "item_bytes": weight.values.element_size()}
        dtype = str(weight.values.dtype).removeprefix("torch.")
        row = {"dtype": dtype} if chosen == DENSE else {"codec": chosen, **sizes}
        return chosen, ENCODERS[chosen](weight.values), row
    said: dict[str, Any] = {"levels": own.levels, "count": own.codes.numel()}
    if own.is_grid:
        chosen = "grid_with_zero" if "zero" in own.tables else "grid"
        said |= {"shape": list(own.shape), "group": own.group, "spacing": own.spacing, "offset": own.offset}
    else:
        chosen = "codebook"
        said |= {"dimension": own.tables["codebook"].shape[1], "items": weight.values.numel()}
    codes = own.packed()
    if _size(own.codes) < _size(codes):
        codes, said["in_bytes"] = own.codes, True
    return chosen, {"codes": codes, **own.tables}, {"codec": chosen, **said}


def _codes_of(weight: _Weight, coded: Mapping[str, Coded]) -> Coded | None:
    """A weight that layers share may be named after another of them."""
    if weight.name in coded:
        return coded[weight.name]
    same = (each for each in coded.values() if each.shape == tuple(weight.values.shape))
    return next((each for each in same if torch.equal(each.values(), weight.values)), None)


def _size(values: Tensor) -> int:
    return _deflated(values)[0].numel()


def _choice(values: Tensor) -> str:
    """The codec that stores `values` in the fewest bytes before anything is deflated."""
    as_bits = math.ceil(values.numel() / 8) + int(_is_not_zero(values).sum()) * values.element_size() + _ROW_BYTES
    return "bitmask" if as_bits < values.numel() * values.element_size() else DENSE


def _is_not_zero(values: Tensor) -> NDArray[np.bool_]:
    """For each item, whether any of its bits is set: a negative zero has one."""
    return np.asarray(_bytes(values).any(1))


def _bytes(values: Tensor) -> Bytes:
    """[items, bytes of an item]."""
    return values.contiguous().flatten().view(torch.uint8).numpy().reshape(values.numel(), values.element_size())


def _dense(values: Tensor) -> _Parts:
    return {"values": values}


def _bitmask(values: Tensor) -> _Parts:
    kept = _is_not_zero(values)
    mask = torch.from_numpy(np.packbits(kept, bitorder="little"))
    return {"mask": mask, "values": values.flatten()[torch.from_numpy(kept)]}


ENCODERS: dict[str, Callable[[Tensor], _Parts]] = {DENSE: _dense, "bitmask": _bitmask}
"""The other side of `CODECS`."""


def _deflated(values: Tensor) -> tuple[Tensor, list[int] | None]:
    """`values` plane by plane, those deflated that get smaller, and the bytes of each; as they are when none does."""
    planes = [_plane(column.tobytes()) for column in _bytes(values).T]
    sizes = [len(plane) for plane in planes]
    if sum(sizes) + _ROW_BYTES > values.numel() * values.element_size():
        return values, None
    return _as_tensor(b"".join(planes)), sizes


def _plane(content: bytes) -> bytes:
    sample = content[:_SAMPLE]
    if len(zlib.compress(sample)) >= _WORTH * len(sample):
        return content
    return min(zlib.compress(content), content, key=len)


def _program(source: zipfile.ZipFile, weights: set[str]) -> Tensor:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            if name not in weights:
                target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED, 9)
    return _as_tensor(content.getvalue())


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
