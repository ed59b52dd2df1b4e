"""Zips of image folders: classes and splits from folders, bad images skipped and counted, nothing extracted."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Data, Transform
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.inspect import inspect_dataset

RGB = TensorInfo(name="image", dtype="float32", shape=[None, 3, 8, 8])
GREY = TensorInfo(name="image", dtype="float32", shape=[None, 1, 8, 8])


def picture(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def good(count: int = 40) -> dict[str, bytes]:
    """Class `one` has value 10, class `two` 200."""
    return {f"{'one' if i % 2 else 'two'}/{i}.png": picture(10 if i % 2 else 200) for i in range(count)}


def opened(path: Path, info: TensorInfo = RGB, transform: Transform | None = None) -> Dataset:
    return open_dataset(path, Data(dataset="d", transform=transform or Transform()), (info,), seed=0)


def refused(path: Path, info: TensorInfo = RGB, transform: Transform | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        opened(path, info, transform)
    return caught.value


def test_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "d.zip", good())
    inspection = inspect_dataset(path)
    assert (inspection.format, inspection.samples, inspection.class_names) == ("image_folder", 40, ["one", "two"])
    dataset = opened(path)
    assert (dataset.task, dataset.metric, dataset.class_count) == ("classification", "accuracy", 2)
    for batch in dataset.train.batches(7):
        assert batch.labels is not None
        expected = torch.where(batch.labels == 0, 10 / 255, 200 / 255)
        assert torch.allclose(batch.inputs[0], expected[:, None, None, None].expand(-1, 3, 8, 8))


@pytest.mark.parametrize("wrapper", ["", "my data/"])
def test_split_folders_are_used_as_they_are(tmp_path: Path, wrapper: str) -> None:
    members = {}
    for split, count in (("train", 5), ("valid", 3), ("test", 2)):
        for i in range(count):
            for name, value in (("one", 10), ("two", 200)):
                members[f"{wrapper}{split}/{name}/{i}.png"] = picture(value)
    path = write_zip(tmp_path / "d.zip", members)
    assert inspect_dataset(path).splits == {"train": 10, "val": 6, "test": 4}
    dataset = opened(path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (10, 6, 4)
    assert not dataset.split_made_here
    assert dataset.class_names == ["one", "two"]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    dataset = opened(write_zip(tmp_path / "d.zip", {f"all/{i}.png": picture(i) for i in range(10)}))
    assert (dataset.task, dataset.has_labels) == ("none", False)


def test_hidden_files_and_macos_leftovers_are_not_looked_at(tmp_path: Path) -> None:
    extra = {"__MACOSX/one/._1.png": b"x", "one/.DS_Store": b"x", ".git/a.png": b"x", "one/._1.png": b"x"}
    inspection = inspect_dataset(write_zip(tmp_path / "d.zip", good() | extra))
    assert (inspection.samples, inspection.skipped_samples, inspection.warnings) == (40, 0, [])


def test_other_files_are_ignored_with_a_warning(tmp_path: Path) -> None:
    inspection = inspect_dataset(write_zip(tmp_path / "d.zip", good() | {"README.txt": b"hello"}))
    assert inspection.samples == 40
    assert [notice.code for notice in inspection.warnings] == ["files_ignored"]
    assert "README.txt" in inspection.warnings[0].message


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 90)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A tiny PNG that claims a size; its rows compress to nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * min(height * (width + 1), 1 << 20))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: picture(size=(64, 64), kind="JPEG")[:400], "decoded"),
    "animated": (animated, "animated"),
    "cmyk": (lambda: picture(mode="CMYK", kind="JPEG"), "CMYK"),
    "sixteen_bit": (lambda: picture(mode="I;16"), "I;16"),
    "empty": (lambda: b"", "0 bytes"),
    "zero_size": (lambda: png_of(0, 8), "decoded"),
    "huge": (lambda: png_of(8_000, 8_000), "more than 50000000"),
    "far_too_huge": (lambda: png_of(60_000, 60_000), "60000 x 60000 pixels"),
    "a_gif": (lambda: picture(kind="GIF"), "cannot identify"),
    "text": (lambda: b"hello", "cannot identify"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    content, reason = BAD[kind]
    path = write_zip(tmp_path / "d.zip", {"one/bad.png": content()} | good())
    inspection = inspect_dataset(path)
    assert (inspection.samples, inspection.skipped_samples) == (40, 1)
    assert reason in inspection.warnings[0].message
    dataset = opened(path)
    assert dataset.skipped_samples == 1
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 40


def test_more_than_a_twentieth_of_bad_images_fails(tmp_path: Path) -> None:
    bad = {f"one/bad{i}.png": b"bad" for i in range(3)}
    path = write_zip(tmp_path / "d.zip", bad | good(40))
    assert refused(path).code is Code.DATASET_BAD
    assert "3 of 43 images cannot be used" in refused(path).message
    with pytest.raises(Failure, match="3 of 43"):
        inspect_dataset(path)


def test_a_member_with_a_wrong_checksum_is_a_bad_image(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "d.zip", good())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    assert inspect_dataset(path).skipped_samples == 1


def test_names_lead_nowhere(tmp_path: Path) -> None:
    failure = refused(write_zip(tmp_path / "d.zip", {"../one/1.png": picture()}))
    assert failure.code is Code.BAD_ARCHIVE


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    failure = refused(write_zip(tmp_path / "d.zip", good() | {"stray.png": picture()}))
    assert failure.where == "stray.png"


def test_images_of_other_sizes_need_a_transform(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "d.zip", good() | {"one/wide.png": picture(10, (32, 16))})
    failure = refused(path)
    assert failure.code is Code.DATASET_MISMATCH
    assert "[3, 16, 32]" in failure.message
    assert "[3, 8, 8]" in failure.message
    assert len(opened(path, transform=Transform(resize=8, crop=8)).train) == 33


def test_images_smaller_than_the_crop_are_refused(tmp_path: Path) -> None:
    failure = refused(write_zip(tmp_path / "d.zip", good()), transform=Transform(crop=16))
    assert "8 x 8 pixels, smaller than `crop` 16" in failure.message


def test_resize_and_crop_cut_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    path = write_zip(tmp_path / "d.zip", {f"{name}/{i}.png": buffer.getvalue() for name in "ab" for i in range(4)})
    cut = opened(path, transform=Transform(crop=8)).train.sample(1, 0).inputs[0]
    assert torch.equal(cut, torch.ones(1, 3, 8, 8))
    info = TensorInfo(name="image", dtype="float32", shape=[None, 3, 4, 12])
    shrunk = opened(path, info, Transform(resize=4)).train.sample(1, 0).inputs[0]
    assert shrunk.shape == (1, 3, 4, 12)
    assert shrunk[0, :, :, 6].eq(1).all()
    assert shrunk[0, :, :, 0].eq(0).all()


def test_a_grey_network_gets_grey_images(tmp_path: Path) -> None:
    dataset = opened(write_zip(tmp_path / "d.zip", good()), GREY, Transform(mean=[0.5], std=[0.25]))
    batch = dataset.val.sample(100, 0)
    assert batch.labels is not None
    expected = (torch.where(batch.labels == 0, 10 / 255, 200 / 255) - 0.5) / 0.25
    assert torch.allclose(batch.inputs[0], expected[:, None, None, None].expand(-1, 1, 8, 8))


def test_images_too_many_for_memory_are_decoded_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "d.zip", good())
    kept = opened(path).train.sample(100, 0)
    monkeypatch.setattr("worker.engine.data.images.CACHE_BYTES", 0)
    again = opened(path).train.sample(100, 0)
    assert torch.equal(kept.inputs[0], again.inputs[0])


@pytest.mark.parametrize(
    "info",
    [
        TensorInfo(name="tokens", dtype="int64", shape=[None, 16]),
        TensorInfo(name="image", dtype="float32", shape=[None, 4, 8, 8]),
    ],
)
def test_a_network_that_takes_no_images_is_a_mismatch(tmp_path: Path, info: TensorInfo) -> None:
    failure = refused(write_zip(tmp_path / "d.zip", good()), info)
    assert failure.code is Code.DATASET_MISMATCH
    assert ".npz" in failure.message
