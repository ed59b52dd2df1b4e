"""Files that lie, break off or point elsewhere, in each format: a refusal with the remedy, and nothing else happens."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.checksums import crc32c, masked
from models.errors import Code, Failure
from tests.engine.data.forms import (
    example,
    feature,
    field,
    picture,
    record,
    write_tar,
    write_tfrecord,
    write_webdataset_images,
)
from worker.engine.data.contents import read_contents
from worker.engine.data.inspect import inspect_dataset

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
CLASSES = {f"{name}/{index}.png": picture(index) for index in range(10) for name in "ab"}


def refused(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        inspect_dataset(path)
    return caught.value


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


END = bytes(1024)
HONEST = b"".join(entry(name, content=content) for name, content in CLASSES.items())
TARS: dict[str, tuple[bytes, str]] = {
    "up": (entry("../a/1.png", content=b"x") + END, "outside"),
    "absolute": (entry("/a/1.png", content=b"x") + END, "outside"),
    "windows": (entry("C:\\a\\1.png", content=b"x") + END, "outside"),
    "long_up": (entry("a/" * 60 + "../" * 80 + "1.png", content=b"x") + END, "outside"),
    "link": (entry("a/1.png", tarfile.SYMTYPE, link="/etc/passwd") + END, "is a link"),
    "hard_link": (entry("a/1.png", tarfile.LNKTYPE, link="b/1.png") + END, "is a hard link"),
    "device": (entry("a/1.png", tarfile.CHRTYPE) + END, "is a device"),
    "pipe": (entry("a/1.png", tarfile.FIFOTYPE) + END, "is a pipe"),
    "sparse": (entry("a/1.png", tarfile.GNUTYPE_SPARSE) + END, "is a sparse file"),
    "twice": (HONEST + entry("a/1.png", content=b"x") + END, "is there twice"),
    "no_end": (HONEST, "truncated"),
    "cut": (HONEST[:-700], "truncated"),
    "more": (HONEST + END + HONEST, "goes on after its end"),
    "checksum": (HONEST + b"x" * 512 + END, "no numbers"),
    "flipped": (HONEST[:512] + HONEST[512:].replace(b"a/1.png", b"a/2.png", 1) + END, "checksum"),
    "huge_name": (entry("n", tarfile.GNUTYPE_LONGNAME, b"a" * 70_000) + HONEST + END, "at most 65536"),
    "bad_pax": (entry("p", tarfile.XHDTYPE, b"99 path=x\n") + HONEST + END, "pax records"),
    "pax_size": (entry("p", tarfile.XHDTYPE, b"22 size=999999999999x\n") + HONEST + END, "no number"),
    "pax_reach": (entry("p", tarfile.XHDTYPE, b"21 size=999999999999\n") + HONEST + END, "reaches past the end"),
    "pax_sparse": (entry("p", tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n") + HONEST + END, "sparse"),
    "pax_for_all": (entry("p", tarfile.XGLTYPE, b"10 path=x\n") + HONEST + END, "one name or size"),
    "nothing": (entry("notes.txt", content=b"x") + END, "no images"),
}


@pytest.mark.parametrize("what", TARS)
def test_a_tar_that_lies_is_refused(tmp_path: Path, what: str) -> None:
    content, says = TARS[what]
    (tmp_path / "data").write_bytes(content)
    failure = refused(tmp_path / "data")
    assert failure.code in (Code.BAD_ARCHIVE, Code.DATASET_BAD)
    assert says in failure.message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read(tmp_path: Path, form: int) -> None:
    folder = "ä" * 20 if form == tarfile.PAX_FORMAT else "f" * 60
    members = {f"{folder}/{'g' * 90}/{name}": content for name, content in CLASSES.items()}
    inspection = inspect_dataset(write_tar(tmp_path / "data", members, form))
    assert (inspection.samples, inspection.class_names, inspection.skipped_samples) == (20, ["a", "b"], 0)


def test_a_folder_of_parts_in_a_tar_is_a_split(tmp_path: Path) -> None:
    members = {f"./{part}/{name}": content for part in ("train", "val", "test") for name, content in CLASSES.items()}
    assert inspect_dataset(write_tar(tmp_path / "data", members)).splits == {"train": 20, "val": 20, "test": 20}


def shard(count: int, first: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(first, first + count):
            for ending, content in ((".jpg", picture(index)), (".cls", str(index % 2).encode()), (".txt", b"words")):
                info = tarfile.TarInfo(f"{index:04}{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_shards_in_a_tar_are_one_data_set_with_their_parts(tmp_path: Path) -> None:
    shards = {"demo-train-0000.tar": shard(8), "demo-train-0001.tar": shard(4), "demo-val-0000.tar": shard(4)}
    inspection = inspect_dataset(write_tar(tmp_path / "data", shards))
    assert (inspection.format, inspection.samples) == ("webdataset", 16)
    assert inspection.splits == {"train": 12, "val": 4}
    assert inspection.labels is not None
    assert inspection.labels.classes == 2
    assert [notice.code for notice in inspection.warnings] == ["files_ignored"]
    (tmp_path / "data").write_bytes(shard(8))
    assert inspect_dataset(tmp_path / "data").splits is None


def test_labels_of_webdataset_may_be_names_in_json(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for index, name in enumerate(["dog", "cat"] * 5):
        members |= {f"{index}.png": picture(index), f"{index}.json": b'{"label": "%s"}' % name.encode()}
    contents = read_contents(write_tar(tmp_path / "data", members))
    assert contents.class_names == ["cat", "dog"]
    assert contents.labels is not None
    assert contents.labels.tolist() == [1, 0] * 5


SAMPLES: dict[str, tuple[dict[str, bytes], str]] = {
    "no_class": ({"000003.cls": b"cat"}, "whole number"),
    "a_huge_class": ({"000003.cls": b"9" * 30}, "whole number"),
    "no_json": ({"000003.json": b"{"}, "no JSON"),
    "deep_json": ({"000003.json": b"[" * 100_000}, "no JSON"),
    "long_json": ({"000003.json": b" " * (2 << 20)}, "at most 1048576"),
    "two_images": ({"000003.jpg": picture(1)}, "twice"),
    "made_otherwise": ({"000020.cls": b"1"}, "not made alike"),
    "a_pickle": ({f"{index:06}.npy": b"\x80\x04N." for index in range(20)}, "cannot be read"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_a_wrong_sample_of_webdataset_is_refused(tmp_path: Path, what: str) -> None:
    members, says = SAMPLES[what]
    path = write_webdataset_images(tmp_path / "honest", [picture(index) for index in range(20)], [0, 1] * 10)
    with tarfile.open(path) as archive:
        honest = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    failure = refused(write_tar(tmp_path / "data", honest | members))
    assert failure.code is Code.DATASET_BAD
    assert says in failure.message


def _hdf5(write: Callable[[h5py.File, Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "data", "w") as file:
            write(file, folder)
        return folder / "data"

    return make


def _link_to_other(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other", "w") as other:
        other["x"] = X
    file["x"] = h5py.ExternalLink(folder / "other", "/x")


def _stored_elsewhere(file: h5py.File, folder: Path) -> None:
    (folder / "raw").write_bytes(X.tobytes())
    file.create_dataset("x", X.shape, X.dtype, external=[(folder / "raw", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other", "w") as other:
        other["x"] = X
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(folder / "other", "x", X.shape)
    file.create_virtual_dataset("x", layout)


def _plugin(file: h5py.File, folder: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((20, 4))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((20, 4)), properties)


def _references(file: h5py.File, folder: Path) -> None:
    file["y"] = X[:, 0]
    file.create_dataset("x", (20,), h5py.ref_dtype)


HDF5: dict[str, tuple[Callable[[Path], Path], str]] = {
    "external_link": (_hdf5(_link_to_other), "external link"),
    "soft_link": (_hdf5(lambda file, _: file.update({"a": X, "x": h5py.SoftLink("/a")})), "is a link"),
    "external_storage": (_hdf5(_stored_elsewhere), "in another file"),
    "virtual": (_hdf5(_virtual), "in another file"),
    "plugin": (_hdf5(_plugin), "filter 32015"),
    "references": (_hdf5(_references), "references"),
    "texts": (_hdf5(lambda file, _: file.create_dataset("x", (20,), h5py.string_dtype())), "texts"),
    "ragged": (_hdf5(lambda file, _: file.create_dataset("x", (20,), h5py.vlen_dtype(np.float32))), "other lengths"),
    "compound": (_hdf5(lambda file, _: file.create_dataset("x", (20,), [("a", "f4")])), "dtype"),
    "group": (_hdf5(lambda file, _: file.create_dataset("train/x", data=X)), "is a group"),
    "nothing": (_hdf5(lambda file, _: None), "no input array"),
    "null": (_hdf5(lambda file, _: file.create_dataset("x", data=h5py.Empty("f4"))), "is empty"),
    "unwritten": (_hdf5(lambda file, _: file.create_dataset("x", (1 << 40, 4), "f4")), "has 0"),
    "bomb": (_hdf5(lambda file, _: file.create_dataset("x", (1 << 40,), "f4", chunks=(1024,))), "more than 20"),
    "zeros": (
        _hdf5(lambda file, _: file.create_dataset("x", data=np.zeros(8 << 20, np.float32), compression="gzip")),
        "more than 20",
    ),
    "huge_chunk": (
        _hdf5(lambda file, _: file.create_dataset("x", (1 << 28,), "f4", chunks=(1 << 28,), compression="gzip")),
        "smaller chunks",
    ),
}


@pytest.mark.parametrize("what", HDF5)
def test_an_hdf5_file_that_reaches_out_or_lies_is_refused(tmp_path: Path, what: str) -> None:
    make, says = HDF5[what]
    failure = refused(make(tmp_path))
    assert failure.code in (Code.DATASET_BAD, Code.BAD_ARCHIVE)
    assert says in failure.message


def _parquet(**columns: pa.Array) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "data")
        return folder / "data"

    return make


PARQUET: dict[str, tuple[Callable[[Path], Path], str]] = {
    "null": (_parquet(x=pa.array([1.0, None, 2.0])), "null near row"),
    "null_inside": (_parquet(x=pa.array([[1.0], [None]])), "null near row"),
    "ragged": (_parquet(x=pa.array([[1.0], [1.0, 2.0]])), "lists of 1 and of 2"),
    "texts": (_parquet(x=pa.array(["a", "b"])), "is string"),
    "times": (_parquet(x=pa.array([0, 1], pa.timestamp("s"))), "timestamp"),
    "decimals": (_parquet(x=pa.array([1, 2], pa.decimal128(5))), "decimal"),
    "no_rows": (_parquet(x=pa.array([], pa.float32())), "no rows"),
    "two_images": (_parquet(a=pa.array([b"1"]), b=pa.array([b"1"])), "several columns of bytes"),
    "many_columns": (_parquet(**{f"c{index}": pa.array([1]) for index in range(300)}), "at most 256"),
    "bomb": (_parquet(x=pa.array(np.zeros(160_000_000, np.int8))), "more than"),
}


@pytest.mark.parametrize("what", PARQUET)
def test_a_parquet_file_that_cannot_be_data_is_refused(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.data.table.FREE_BYTES", 1 << 20)
    make, says = PARQUET[what]
    failure = refused(make(tmp_path))
    assert failure.code is Code.DATASET_BAD
    assert says in failure.message


def test_a_type_that_a_parquet_file_names_is_not_loaded(tmp_path: Path) -> None:
    """Old Arrow unpickled the extension types that a file's own schema describes."""
    canary = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(canary),)

    import pickle

    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Runs())}
    schema = pa.schema([pa.field("x", pa.float32(), metadata=metadata)])
    pq.write_table(pa.table([pa.array(X[:, 0])], schema=schema), tmp_path / "data")
    assert inspect_dataset(tmp_path / "data").samples == 20
    assert not canary.exists()


def test_columns_of_numbers_are_one_input_in_their_order(tmp_path: Path) -> None:
    columns = {"b": pa.array(X[:, 0]), "a": pa.array(X[:, 1]), "label": pa.array(["n", "m"] * 10)}
    contents = read_contents(_parquet(**columns)(tmp_path))
    np.testing.assert_array_equal(contents.arrays["x"], X[:, :2])
    assert contents.labels is not None
    assert (contents.class_names, contents.labels.tolist()) == (["m", "n"], [1, 0] * 10)


GOOD = record(example({"x": feature(X[0]), "y": feature(1)}))
RECORDS: dict[str, tuple[bytes, str]] = {
    "length": (GOOD + GOOD[:8] + bytes(4) + GOOD[12:], "length that does not match"),
    "data": (GOOD + GOOD[:14] + b"\xff" + GOOD[15:], "record 1 does not match its checksum"),
    "cut_head": (GOOD + GOOD[:7], "record 1 is cut short"),
    "cut_data": (GOOD + GOOD[:-3], "record 1 is cut short"),
    "huge": (GOOD + struct.pack("<QI", 1 << 40, masked(crc32c(struct.pack("<Q", 1 << 40)))) + GOOD[12:], "at most"),
    "no_example": (record(b"hello"), "no tf.train.Example"),
    "empty": (record(b""), "no features"),
    "past_the_end": (record(b"\x0a\x7f\x0a"), "reaches past the end"),
    "endless_number": (record(b"\x0a" + b"\xff" * 30), "more than 64 bits"),
    "named_twice": (record(field(1, 2 * field(1, field(1, b"x") + field(2, feature(1.0))))), "there twice"),
    "other_features": (GOOD + record(example({"x": feature(X[0])})), "has no 'y'"),
    "other_length": (GOOD + record(example({"x": feature(X[0, :3]), "y": feature(1)})), "has 3 numbers"),
    "other_kind": (GOOD + record(example({"x": feature(X[0]), "y": feature(b"cat")})), "has 0 numbers (bytes)"),
    "other_shape": (record(example({"x": feature(X[0]), "x/shape": feature(np.array([3, 3]))})), "Make them agree"),
    "texts": (record(example({"text": feature(b"hello")})), "no input array"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_tfrecord_file_that_lies_is_refused(tmp_path: Path, what: str) -> None:
    content, says = RECORDS[what]
    (tmp_path / "data").write_bytes(content)
    failure = refused(tmp_path / "data")
    assert failure.code in (Code.BAD_ARCHIVE, Code.DATASET_BAD)
    assert says in failure.message


def test_numbers_one_by_one_are_read_like_packed_ones(tmp_path: Path) -> None:
    floats = field(2, b"".join(b"\x0d" + struct.pack("<f", number) for number in X[0]))
    wholes = field(3, b"\x08\x05\x08" + b"\xff" * 9 + b"\x01")
    (tmp_path / "data").write_bytes(record(example({"x0": floats, "x1": wholes})))
    arrays = read_contents(tmp_path / "data").arrays
    np.testing.assert_array_equal(arrays["x0"], X[:1])
    assert arrays["x1"].tolist() == [[5, -1]]


def test_large_whole_numbers_come_back_exactly(tmp_path: Path) -> None:
    values = np.array([[0, 127, 128, -1, 1 << 62, -(1 << 63), (1 << 63) - 1]] * 3)
    np.testing.assert_array_equal(read_contents(write_tfrecord(tmp_path / "data", {"x": values})).arrays["x"], values)


def test_the_checksum_of_heads_is_that_of_contents() -> None:
    content = bytes(range(256)) * 5
    assert crc32c(b"123456789") == google_crc32c.value(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert [crc32c(content[:size]) for size in range(1280)] == [
        google_crc32c.value(content[:size]) for size in range(1280)
    ]
