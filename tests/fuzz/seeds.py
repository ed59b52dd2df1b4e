"""Small whole files of every format, written by the libraries that people write them with."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from tests.engine.data import forms
from tests.engine.data.forms import ARRAY_FORMS, IMAGE_FORMS, picture
from tests.engine.ingest.archives import good_archive
from tests.engine.ingest.named.checkpoints import saved
from tests.engine.ingest.onnx.test_archive import DATA, apart
from tests.engine.ingest.onnx.test_operators import CASES, RECURRENT, recurrent_network
from tests.engine.ingest.onnx.test_refusals import linear

OLDER = Path(__file__).parents[1] / "engine" / "ingest" / "older"
SAMPLES = 12

_NUMBERS = np.random.default_rng(0)
ARRAYS: dict[str, forms.Array] = {
    "x": _NUMBERS.normal(size=(SAMPLES, 2, 3)).astype(np.float32),
    "y": np.arange(SAMPLES) % 3,
    "split": np.array((["train"] * 2 + ["val", "test"]) * 3),
}
IMAGES = [picture(value, (5, 4), kind) for value in range(5) for kind in ("PNG", "JPEG", "BMP", "WEBP")]
LABELS = [index % 2 for index in range(len(IMAGES))]


def _written(write: Callable[..., Path], *given: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "file", *given).read_bytes()


def _arrays(*kinds: str) -> list[bytes]:
    return [_written(ARRAY_FORMS[kind], ARRAYS) for kind in kinds]


def _images(*kinds: str) -> list[bytes]:
    return [_written(IMAGE_FORMS[kind], IMAGES, LABELS) for kind in kinds]


def pt2() -> list[bytes]:
    """Of this torch, and of older ones that kept tensors in other ways; none of what is never opened."""
    archive = good_archive()
    archive.members = {name: held for name, held in archive.members.items() if "sample_inputs" not in name}
    fixed = good_archive()
    fixed.members = dict(archive.members)
    for meta in fixed.graph["tensor_values"].values():
        meta["sizes"] = [{"as_int": 2} if "as_expr" in size else size for size in meta["sizes"]]
    older = [path.read_bytes() for path in sorted(OLDER.glob("*.pt2")) if "2.5" in path.name or "2.8" in path.name]
    return [*(_written(each.write) for each in (archive, fixed)), *older]


def onnx() -> list[bytes]:
    """One node of every operator that is read, in the forms it had; recurrent layers; a chain with a known branch."""
    cases = [case.network() for case in CASES]
    layers = [recurrent_network(name, bias=True, opset=opset) for name in RECURRENT for opset in (7, 22)]
    return [network.SerializeToString() for network in (linear(), *cases, *layers)]


def small_module() -> nn.Module:
    """What the files of weights are of."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    return small_module().state_dict()


def safetensors() -> list[bytes]:
    halves = {"x": torch.ones(6, 3, dtype=torch.bfloat16), "y": torch.arange(6)}
    flags = {"x": torch.ones(6, dtype=torch.bool), "x1": torch.ones(6, 2, dtype=torch.float64)}
    return [save(_state(), {"format": "pt"}), save(halves), save(flags), *_arrays("safetensors")]


def pth() -> list[bytes]:
    state, parameters = _state(), dict(small_module().named_parameters())
    tied = {**state, "2.bias": state["0.weight"].flatten()[2:4], "half": state["0.bias"].half()}
    training = {
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "epoch": 3,
    }
    return [*map(saved, (state, parameters, tied, training)), saved(state, pickle_protocol=4)]


def npz() -> list[bytes]:
    def packed(save_arrays: Callable[..., None], **arrays: Any) -> bytes:
        buffer = io.BytesIO()
        save_arrays(buffer, **arrays)
        return buffer.getvalue()

    turned = {"x0": np.asfortranarray(ARRAYS["x"]), "x1": ARRAYS["x"].astype(">f8"), "y": ARRAYS["y"] > 1}
    alone = io.BytesIO()
    np.save(alone, ARRAYS["x"].astype(np.float16))
    archives = [packed(np.savez, **ARRAYS), packed(np.savez_compressed, **ARRAYS), packed(np.savez, **turned)]
    return [*archives, alone.getvalue()]


def zips() -> list[bytes]:
    """Of images in folders, and of a network as Hugging Face keeps it."""
    parted = {f"{part}/a/{index}.png": picture(index) for index, part in enumerate(["train", "train", "val", "test"])}
    index = {"weight_map": {name: f"{name[0]}.safetensors" for name in _state()}}
    shards = {f"{place}.safetensors": {n: v for n, v in _state().items() if n[0] == place} for place in "012"}
    config = json.dumps({"model_type": "bert", "architectures": ["BertModel"]}).encode()
    folder = {"net/config.json": config, "net/model.safetensors.index.json": json.dumps(index).encode()}
    folder |= {f"net/{name}": save(tensors) for name, tensors in shards.items()}
    whole = {"config.json": config, "model.safetensors": save(_state())}
    packed = [(parted, zipfile.ZIP_DEFLATED), (folder, zipfile.ZIP_STORED), (whole, zipfile.ZIP_STORED)]
    return [*_images("zip of folders"), *(zipped(*each) for each in packed)]


def zipped(members: Mapping[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tars() -> list[bytes]:
    """Of images in folders, WebDataset, shards of that, and an ONNX file beside its weights."""
    long = {f"{'d' * 90}/{'e' * 90}/{index}.png": picture(index) for index in range(4)}
    labelled = {f"{i}.json": json.dumps({"label": "ab"[i % 2], "split": "train"}).encode() for i in range(4)}
    arrays = _arrays("webdataset")
    shards = {f"train-{index}.tar": content for index, content in enumerate(_images("webdataset"))}
    network = {"network.onnx": apart().SerializeToString(), "network.data": DATA}
    packed = [(long, tarfile.PAX_FORMAT), (long, tarfile.GNU_FORMAT), (long, tarfile.USTAR_FORMAT)]
    packed += [(shards, tarfile.PAX_FORMAT), (network, tarfile.USTAR_FORMAT)]
    packed += [({**{f"{i}.png": picture(i) for i in range(4)}, **labelled}, tarfile.PAX_FORMAT)]
    return [*arrays, *_images("tar of folders", "webdataset"), *(tar(*each) for each in packed)]


def tar(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return _written(forms.write_tar, members, form)


def hdf5() -> list[bytes]:
    return _arrays("hdf5", "hdf5 chunked")


def parquet() -> list[bytes]:
    return [*_arrays("parquet"), *_images("parquet")]


def tfrecord() -> list[bytes]:
    return [*_arrays("tfrecord"), *_images("tfrecord")]
