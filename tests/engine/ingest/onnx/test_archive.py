"""An ONNX file with its weights beside it, as one tar archive: read where it is plain, refused where it is not."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from models.errors import Code, Failure
from tests.engine.ingest.onnx.graphs import compare
from tests.engine.ingest.onnx.test_refusals import linear
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

DATA = linear().graph.initializer[0].raw_data


def apart(location: str = "network.data", offset: str = "0", length: str | None = "48", **more: str) -> ModelProto:
    """The network with its only weight in another file."""
    network = linear()
    tensor = network.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length, **more}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return network


def packed(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_weights_beside_the_network_are_read(form: int, tmp_path: Path) -> None:
    members = {"network.onnx": apart().SerializeToString(), "network.data": DATA}
    compare(linear(), lift(read_network(packed(tmp_path / "n.tar", members, form))))


def test_weights_may_begin_later_and_need_no_length(tmp_path: Path) -> None:
    network = apart(offset="16", length=None).SerializeToString()
    path = packed(tmp_path / "n.tar", {"network.onnx": network, "network.data": bytes(16) + DATA})
    compare(linear(), lift(read_network(path)))


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
@pytest.mark.parametrize("form", ["gnu", "ustar"])
def test_what_tar_itself_packs_is_read(form: str, tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    command = ["tar", f"--format={form}", "-cf", "net.tar", "net.onnx", "net.data"]
    subprocess.run(command, cwd=tmp_path, check=True)
    compare(linear(), lift(read_network(tmp_path / "net.tar")))


BROKEN: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "no_network": (lambda: {"network.data": DATA}, "0 ONNX files"),
    "two_networks": (lambda: {"a.onnx": linear().SerializeToString(), "b.onnx": b""}, "2 ONNX files"),
    "data_missing": (lambda: {"network.onnx": apart().SerializeToString()}, "not beside"),
    "data_of_no_use": (lambda: {"network.onnx": linear().SerializeToString(), "more": b"x"}, "does not use"),
    "elsewhere": (
        lambda: {"network.onnx": apart(location="/etc/passwd").SerializeToString(), "network.data": DATA},
        "'/etc/passwd'",
    ),
    "above": (
        lambda: {"network.onnx": apart(location="../network.data").SerializeToString(), "network.data": DATA},
        "not beside",
    ),
    "too_short": (lambda: {"network.onnx": apart().SerializeToString(), "network.data": DATA[:-1]}, "too few"),
    "too_far": (
        lambda: {"network.onnx": apart(offset="1").SerializeToString(), "network.data": DATA},
        "too few",
    ),
    "another_length": (
        lambda: {"network.onnx": apart(length="44").SerializeToString(), "network.data": DATA},
        "needs 48 bytes",
    ),
    "negative": (
        lambda: {"network.onnx": apart(offset="-4").SerializeToString(), "network.data": DATA},
        "plainly",
    ),
    "unknown_entry": (
        lambda: {"network.onnx": apart(basepath="/").SerializeToString(), "network.data": DATA},
        "plainly",
    ),
    "folder": (lambda: {"x/network.onnx": apart().SerializeToString(), "x/network.data": DATA}, "plain file"),
    "way_out": (lambda: {"../network.onnx": apart().SerializeToString()}, "plain file"),
    "twice": (lambda: {"network.onnx": linear().SerializeToString(), "./network.onnx": b""}, "twice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_archive_of_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    members, says = BROKEN[name]
    with pytest.raises(Failure) as caught:
        read_network(packed(tmp_path / "n.tar", members()))
    assert caught.value.code in (Code.NETWORK_REJECTED, Code.BAD_ARCHIVE)
    assert says in caught.value.message


def linked(path: Path, kind: bytes) -> Path:
    """The weights of the network in it are a link, a device …"""
    packed(path, {"network.onnx": apart().SerializeToString()})
    link = tarfile.TarInfo("network.data")
    link.type, link.linkname = kind, "/etc/passwd"
    content = path.read_bytes()
    end = 512 * (2 + (len(apart().SerializeToString()) - 1) // 512)
    path.write_bytes(content[:end] + link.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    return path


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"L", b"x", b"S"]
)
def test_members_that_are_no_plain_files_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = linked(tmp_path / "n.tar", kind)
    with pytest.raises(Failure, match="plain file") as caught:
        read_network(path)
    assert caught.value.code == Code.BAD_ARCHIVE


def test_archives_that_lie_about_their_sizes_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "n.tar", {"network.onnx": linear().SerializeToString()})
    good = path.read_bytes()
    end = len(good.rstrip(b"\0"))
    for content in (good[:700], good[: end + 100], good + b"more", good[:512] + b"\x01" + good[513:1024]):
        path.write_bytes(content)
        with pytest.raises(Failure):
            read_network(path)
    huge = bytearray(good)
    huge[124:136] = b"77777777777\0"
    huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + 256 + sum(huge[156:512]))
    path.write_bytes(huge)
    with pytest.raises(Failure, match="cut short"):
        read_network(path)
