"""Data several times larger than the memory there is: inspected, split and read to the last sample."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from models.checksums import masked
from models.errors import Code, Failure
from tests.engine.data import reader
from tests.engine.data.forms import ARRAY_FORMS, Array, example, feature, picture, write_tar
from worker.engine.data.contents import read_contents

ROWS, WIDTH = 128, 1 << 19
"""256 MiB of float32, twice the memory beside the imports."""
ORDINARY = ("npz", "hdf5")
"""The others want `MODELPRESS_SWEEPS=full`; most are read the same way as these."""


def _rows(first: int, last: int) -> Array:
    """Row r is r in every place."""
    return np.repeat(np.arange(first, last, dtype=np.float32), WIDTH).reshape(last - first, WIDTH)


def write_npy(path: Path) -> None:
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, WIDTH))
    for row in range(ROWS):
        mapped[row] = row


def write_npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=_rows(0, ROWS))
    path.with_suffix(".npz").rename(path)


def write_safetensors(path: Path) -> None:
    save_file({"x": _rows(0, ROWS)}, path)


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (ROWS, WIDTH), np.float32, chunks=(3, WIDTH // 4))[:] = _rows(0, ROWS)


def write_tfrecord(path: Path) -> None:
    with path.open("wb") as file:
        for row in range(ROWS):
            content = example({"x": feature(_rows(row, row + 1))})
            length = len(content).to_bytes(8, "little")
            for part in (length, content):
                file.write(part + masked(google_crc32c.value(part)).to_bytes(4, "little"))


def write_webdataset(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for row in range(ROWS):
            buffer = BytesIO()
            np.save(buffer, _rows(row, row + 1)[0])
            info = tarfile.TarInfo(f"{row:04}.npy")
            info.size = len(buffer.getvalue())
            archive.addfile(info, BytesIO(buffer.getvalue()))


WRITERS: dict[str, Callable[[Path], None]] = {
    "npy": write_npy,
    "npz": write_npz,
    "safetensors": write_safetensors,
    "hdf5": write_hdf5,
    "tfrecord": write_tfrecord,
    "webdataset": write_webdataset,
}


def _read(path: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-P", reader.__file__, "little", str(path)],
        env={"OMP_NUM_THREADS": "1", "TMPDIR": str(path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("form", WRITERS if os.environ.get("MODELPRESS_SWEEPS") == "full" else ORDINARY)
def test_twice_the_memory_is_read_to_the_last_sample(tmp_path: Path, form: str) -> None:
    path = tmp_path / "data"
    WRITERS[form](path)
    assert path.stat().st_size >= 2 * reader.MORE_BYTES
    assert _read(path) == {"format": form, "total": WIDTH * sum(range(ROWS)), "count": ROWS}
    path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_large_tar_of_images_is_read_to_the_last(tmp_path: Path) -> None:
    """Padded images: 250 MB of files, few pixels."""
    image = picture(51) + bytes(2 << 20)
    members = {f"{'ab'[index % 2]}/{index}.png": image for index in range(128)}
    path = write_tar(tmp_path / "data", members)
    found = _read(path)
    assert (found["format"], found["count"]) == ("image_folder", 128)
    assert found["total"] == pytest.approx(128 * 3 * 64 * 0.2)


@pytest.mark.parametrize("form", ["hdf5 chunked", "parquet"])
def test_a_full_disk_is_not_the_fault_of_the_data(form: str, tmp_path: Path) -> None:
    """By a limit on the size of files, which the system tells of in the same way."""
    path = ARRAY_FORMS[form](tmp_path / "data", {"x": np.random.default_rng(0).normal(size=(6000, 1000))})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(Failure) as caught:
            read_contents(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code is Code.DISK_FULL
