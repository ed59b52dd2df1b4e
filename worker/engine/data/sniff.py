"""What a file is, from its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from models.errors import Code, Failure
from worker.engine.data.archive import open_archive
from worker.engine.data.images import SUFFIXES

ACCEPTED = "Data is read as `.npz` (`np.savez(file, x=…, y=…)`) or as a zip of image folders (`class/image.png`)"
ZIP = b"PK\x03\x04"
KNOWN: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a single `.npy` array; write it with `np.savez(file, x=array)`"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"PAR1", "Parquet"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "7-Zip"),
    (b"Rar!", "RAR"),
    (b"\x89PNG", "a single PNG image; put images into a zip, one folder for each class"),
    (b"\xff\xd8\xff", "a single JPEG image; put images into a zip, one folder for each class"),
    (b"\x7fELF", "a program"),
    (b"\x80", "a Python pickle, which can run code when read and is never opened"),
)


def dataset_format(path: Path) -> Literal["npz", "image_folder"]:
    """Raises Failure: EMPTY_FILE, UNKNOWN_FORMAT (saying what it is and what to send), BAD_ARCHIVE."""
    with path.open("rb") as file:
        first = file.read(512)
    if not first:
        raise Failure(Code.EMPTY_FILE, "The file is empty.")
    if not first.startswith(ZIP):
        found = next((text for magic, text in KNOWN if first.startswith(magic)), None)
        if found is None and first[257:262] == b"ustar":
            found = "a tar archive"
        raise Failure(Code.UNKNOWN_FORMAT, f"This is {found or 'no format we know'}. {ACCEPTED}.")
    with open_archive(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(Path(name).suffix.lower() in SUFFIXES for name in names):
        return "image_folder"
    if any(name.endswith(("data.pkl", "archive_format", "serialized_exported_program.json")) for name in names):
        raise Failure(Code.UNKNOWN_FORMAT, f"This is a network saved by PyTorch, not data. {ACCEPTED}.")
    raise Failure(Code.UNKNOWN_FORMAT, f"This zip holds neither arrays nor images. {ACCEPTED}.")
