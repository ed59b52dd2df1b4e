from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.checksums import crc32c, masked
from models.errors import Code, Failure
from models.formats import identify_network_archive, sniff_dataset, sniff_network


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


def _safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."

REFUSED = {
    "nothing": (b"", Code.EMPTY_FILE, "empty"),
    "one_byte": (b"x", Code.UNKNOWN_FORMAT, "too short"),
    "noise": (bytes(range(7, 107)), Code.UNKNOWN_FORMAT, "no known format"),
    "legacy_torch_save": (LEGACY_TORCH, Code.UNSAFE_PICKLE, "pickle"),
    "pickle": (pickle.dumps({"a": 1}), Code.UNSAFE_PICKLE, "pickle"),
    "text_pickle": (pickle.dumps(_Runs(), protocol=0), Code.UNSAFE_PICKLE, "pickle"),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(60), Code.UNKNOWN_FORMAT, "ELF"),
    "gzip": (gzip.compress(b"x" * 100), Code.UNKNOWN_FORMAT, "Unpack"),
    "seven_zip": (b"7z\xbc\xaf\x27\x1c" + bytes(60), Code.UNKNOWN_FORMAT, "7z"),
    "bzip2": (b"BZh91AY&SY" + bytes(60), Code.UNKNOWN_FORMAT, "Unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), Code.UNKNOWN_FORMAT, "Keras"),
    "gguf": (b"GGUF\x03" + bytes(60), Code.UNKNOWN_FORMAT, "GGUF"),
    "npy": (_npy(), Code.UNKNOWN_FORMAT, "numpy array"),
    "safetensors": (_safetensors(), Code.UNKNOWN_FORMAT, "weights without a network"),
    "json": (b'{"model": 1}' + b" " * 60, Code.UNKNOWN_FORMAT, "JSON"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", Code.UNKNOWN_FORMAT, "HTML"),
    "git_lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", Code.UNKNOWN_FORMAT, "git lfs pull"),
    "empty_zip": (b"PK\x05\x06" + bytes(18), Code.BAD_ARCHIVE, "empty zip"),
}

DATA = ("npy", "safetensors", "hdf5")
"""Of these, what is data."""


@pytest.mark.parametrize("name", DATA)
def test_data_is_known_by_its_beginning(name: str) -> None:
    content, _, _ = REFUSED[name]
    assert sniff_dataset(content, len(content), f"data.{name}") == name


def test_a_record_is_known_by_the_checksum_of_its_length() -> None:
    """Also one of 640 bytes, which begins as a pickle does."""
    head = (640).to_bytes(8, "little")
    whole = head + masked(crc32c(head)).to_bytes(4, "little") + bytes(644)
    assert sniff_dataset(whole, len(whole), "data.tfrecord") == "tfrecord"
    assert sniff_dataset(b"PAR1" + bytes(60), 64, "data.parquet") == "parquet"
    with pytest.raises(Failure, match="pickle"):
        sniff_dataset(head + bytes(648), 656)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_network_is_refused_with_what_it_is(name: str) -> None:
    content, code, says = REFUSED[name]
    with pytest.raises(Failure) as caught:
        sniff_network(content, len(content))
    assert caught.value.code == code
    assert says in caught.value.message


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("nothing", "gzip", "bzip2", "seven_zip")])
def test_the_refusal_says_how_to_convert(name: str) -> None:
    content, _, _ = REFUSED[name]
    for sniff, way in ((sniff_network, "modelpress prepare"), (sniff_dataset, "numpy.savez")):
        if sniff is sniff_dataset and name in DATA:
            continue
        with pytest.raises(Failure) as caught:
            sniff(content, len(content))
        assert way in caught.value.message or "git lfs" in caught.value.message


def test_a_pickle_is_refused_with_the_function_it_names() -> None:
    for protocol in (0, 2, 4):
        with pytest.raises(Failure) as caught:
            sniff_network(pickle.dumps(_Runs(), protocol=protocol), None)
        assert caught.value.code == Code.UNSAFE_PICKLE
        assert "posix.system" in caught.value.message


@pytest.mark.parametrize(
    ("filename", "content", "says"),
    [
        ("net.pt2", b"\x7fELF" + bytes(60), "ELF"),
        ("weights.safetensors", b"PK\x03\x04" + bytes(60), "zip"),
        ("net.onnx", _safetensors(), "safetensors"),
        ("net.npz", b"GGUF" + bytes(60), "GGUF"),
    ],
)
def test_a_name_that_lies_is_refused_with_both(filename: str, content: bytes, says: str) -> None:
    with pytest.raises(Failure) as caught:
        sniff_network(content, len(content), filename)
    assert caught.value.code == Code.FORMAT_MISMATCH
    assert Path(filename).suffix in caught.value.message
    assert says in caught.value.message


@pytest.mark.parametrize("filename", [None, "net.pt2", "net", "net.zip", "net.v2", "../../etc/cron.d/x"])
def test_a_zip_archive_may_be_a_network_or_data(filename: str | None) -> None:
    head = b"PK\x03\x04" + bytes(60)
    assert sniff_network(head, 1000, filename) == "zip"
    assert sniff_dataset(head, None, filename) == "zip"


def test_an_onnx_file_may_be_a_network_and_is_no_data() -> None:
    head = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(60)
    assert sniff_network(head, len(head), "net.onnx") == "onnx"
    assert sniff_network(_tar(), None, "net.tar") == "tar"
    assert sniff_dataset(_tar(), None, "shard.tar") == "tar"
    with pytest.raises(Failure, match="ONNX"):
        sniff_dataset(head, len(head))
    for other in (b"\x08\x01\x12", b"\x08\x02\x12", b"\x0a\x08\x12", b"\x08\x08\x7f"):
        with pytest.raises(Failure):
            sniff_network(other + bytes(60), 100)


MEMBERS = {
    "torch_save": (["archive/data.pkl", "archive/data/0"], Code.UNSAFE_PICKLE, "torch.save"),
    "torchscript": (
        ["net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"],
        Code.TORCHSCRIPT_NOT_SUPPORTED,
        "TorchScript",
    ),
    "torch_package": (["p/.data/extern_modules", "p/model/model.pkl"], Code.UNSAFE_PICKLE, "torch.package"),
    "npz": (["x.npy", "y.npy"], Code.UNKNOWN_FORMAT, "data set"),
    "images": (["cat/1.png", "dog/2.JPG"], Code.UNKNOWN_FORMAT, "images"),
    "keras": (["metadata.json", "config.json", "model.weights.h5"], Code.UNKNOWN_FORMAT, "Keras"),
    "saved_model": (["m/saved_model.pb"], Code.UNKNOWN_FORMAT, "SavedModel"),
    "hugging_face": (["bert/config.json", "bert/model.safetensors"], Code.UNKNOWN_FORMAT, "folder of weights"),
    "something": (["a.txt"], Code.UNKNOWN_FORMAT, "no network"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_zip_archive_is_told_by_its_members(name: str, tmp_path: Path) -> None:
    members, code, says = MEMBERS[name]
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    with pytest.raises(Failure) as caught:
        identify_network_archive(path)
    assert caught.value.code == code
    assert says in caught.value.message
    assert "modelpress prepare" in caught.value.message


def test_a_broken_zip_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(Failure) as caught:
        identify_network_archive(path)
    assert caught.value.code == Code.BAD_ARCHIVE
