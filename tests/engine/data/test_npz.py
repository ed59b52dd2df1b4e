"""Arrays from strangers are read exactly, or refused with the reason; nothing in them runs."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from models.errors import Code, Failure
from worker.engine.data.inspect import inspect_dataset
from worker.engine.data.npz import check_contents, read_npz


def npy_bytes(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A `.npy` file with any header at all."""
    text = header.encode() + b"\n"
    return npy.magic(*version) + struct.pack("<H", len(text)) + text + data


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refused(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        read_npz(path)
    return caught.value


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "float": np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32),
    "bytes": np.arange(20, dtype=np.uint8).reshape(5, 4),
    "big_endian": np.arange(5, dtype=">i4"),
    "column_major": np.asfortranarray(np.arange(30.0).reshape(5, 6)),
    "flags": np.array([True, False, True, True, False]),
    "split": np.array(["train", "val", "test", "train", "train"]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_exactly(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    save(path, **ARRAYS)
    found = read_npz(path)
    check_contents(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_stored_array_is_mapped_and_a_deflated_one_is_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", x=np.ones((4, 4)))
    np.savez_compressed(tmp_path / "deflated.npz", x=np.ones((4, 4)))
    assert isinstance(read_npz(tmp_path / "stored.npz")["x"], np.memmap)
    assert not isinstance(read_npz(tmp_path / "deflated.npz")["x"], np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_cannot_be_written_to(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "data.npz", x=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="read-only"):
        read_npz(tmp_path / "data.npz")["x"][0] = 1


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_object_array_is_refused_and_not_unpickled(tmp_path: Path, save: Any) -> None:
    canary = tmp_path / "ran"
    path = tmp_path / "data.npz"
    save(path, x=np.array([_Bomb(canary)], dtype=object))
    failure = refused(path)
    assert failure.code is Code.DATASET_BAD
    assert "pickle" in failure.message
    assert failure.where == "x"
    with pytest.raises(Failure):
        inspect_dataset(path)
    assert not canary.exists()


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    failure = refused(write_zip(tmp_path / "data.npz", {"x.npy": npy_bytes(header, b"\0" * 64)}))
    assert "claims 4000000000000 bytes of data and has 64" in failure.message


def test_a_compression_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((50, 1_000_000), dtype=np.uint8))
    assert path.stat().st_size < 200_000
    failure = refused(path)
    assert failure.code is Code.DATASET_BAD
    assert "more than 20" in failure.message
    assert "np.savez" in failure.message


def test_labels_may_compress_well(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", y=np.zeros(100_000, dtype=np.int64))
    assert len(read_npz(tmp_path / "data.npz")["y"]) == 100_000


HEADERS = {
    "structured": "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
    "text": "{'descr': '<U4', 'fortran_order': False, 'shape': (2,), }",
    "complex": "{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }",
    "long_double": "{'descr': '<f16', 'fortran_order': False, 'shape': (2,), }",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2), }",
    "no_bytes_each": "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "scalar": "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
    "no_samples": "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904), }",
    "no_elements": "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 0), }",
    "code": "__import__('os').mkdir('ran')",
    "not_a_dictionary": "[1, 2]",
    "deep": "(" * 3000 + ")" * 3000,
    "long": "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + " " * 20_000,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_strange_header_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failure = refused(write_zip(tmp_path / "data.npz", {"x.npy": npy_bytes(HEADERS[kind], b"\0" * 16)}))
    assert failure.code is Code.DATASET_BAD
    assert failure.where == "x"
    assert not (tmp_path / "ran").exists()


def test_a_header_of_another_version_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.npz", {"x.npy": npy_bytes("{}", version=(3, 0))})
    assert "version (3, 0)" in refused(path).message


def _rewritten(path: Path, member: str, **changes: Any) -> Path:
    """A zip whose one member has other fields than an honest writer gives."""
    info = zipfile.ZipInfo(member)
    for name, value in changes.items():
        setattr(info, name, value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, b"content")
    return path


@pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "a/../../x.npy", "..\\x.npy", "C:\\x.npy"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    failure = refused(_rewritten(tmp_path / "data.npz", name))
    assert failure.code is Code.BAD_ARCHIVE
    assert "outside" in failure.message


def test_a_link_is_refused(tmp_path: Path) -> None:
    failure = refused(_rewritten(tmp_path / "data.npz", "x.npy", external_attr=0o120777 << 16))
    assert (failure.code, "is a link" in failure.message) == (Code.BAD_ARCHIVE, True)


def test_another_compression_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.npz", {"x.npy": b"content" * 100}, zipfile.ZIP_LZMA)
    assert "other than deflate" in refused(path).message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"one")
        archive.writestr("x.npy", b"two")
    failure = refused(path)
    assert (failure.code, "twice" in failure.message) == (Code.BAD_ARCHIVE, True)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.npz", {"x.npy": b"content"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refused(path).message


def test_something_other_than_an_array_beside_arrays_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    path = write_zip(tmp_path / "data.npz", {"x.npy": buffer.getvalue(), "notes.txt": b"hello"})
    assert "is not a `.npy` array" in refused(path).message


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_file_is_refused(tmp_path: Path, save: Any, kept: float) -> None:
    path = tmp_path / "data.npz"
    save(path, x=np.random.default_rng(0).normal(size=(50, 20)), y=np.arange(50))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refused(path).code is Code.BAD_ARCHIVE


def test_a_flipped_bit_is_found_by_inspection(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((10_000, 20), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[100_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(Failure, match="checksum") as caught:
        inspect_dataset(path)
    assert caught.value.code is Code.BAD_ARCHIVE


def test_any_change_of_a_byte_is_read_or_refused_and_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    generator = np.random.default_rng(0)
    np.savez_compressed(path, x=generator.integers(0, 9, (20, 3)), y=np.arange(20) % 2)
    original = path.read_bytes()
    outcomes = set()
    for _ in range(400):
        content = bytearray(original)
        for position in generator.integers(0, len(content), 3):
            content[position] = generator.integers(0, 256)
        path.write_bytes(content)
        try:
            inspect_dataset(path)
            outcomes.add("read")
        except Failure as failure:
            outcomes.add(failure.code)
    assert {"read", Code.BAD_ARCHIVE, Code.DATASET_BAD} <= outcomes
