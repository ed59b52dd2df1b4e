"""A zip of image folders: `class/image.png`, or `train/class/image.png` beside `val/` and `test/`.

Images are decoded in memory by Pillow, by their bytes and not by their names, and nothing is extracted. What cannot
be decoded soundly (truncated, animated, CMYK, 16-bit, empty, larger than 50 million pixels) is skipped and counted.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Transform
from worker.engine.data.archive import open_archive
from worker.engine.data.samples import torch_dtype
from worker.engine.data.splits import SPLIT_NAMES, Rows, SplitName
from worker.engine.data.transform import check_channels, normalise, resize_and_crop

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
MAX_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
"""Pillow warns above this while it reads the header; here the warning is an error."""
MAX_FILE_BYTES = 256 << 20
MAX_BAD_SHARE = 0.05
CACHE_BYTES = 2 << 30
"""Decoded images are kept in memory when all of them together are at most this large."""
COLOUR_OF_CHANNELS = {1: "L", 3: "RGB"}


class BadImage(Exception):
    """An image that is skipped; the text says why."""


@dataclass(frozen=True)
class ImageFile:
    """A member of the zip and what its folders say: `class_index` is None without class folders."""

    name: str
    class_index: int | None
    split: SplitName | None


@dataclass(frozen=True)
class Listing:
    """`ignored` are members that are no images by their suffix."""

    files: list[ImageFile]
    class_names: list[str] | None
    ignored: list[str]


def list_images(archive: zipfile.ZipFile) -> Listing:
    """Sort the members into classes (by name, sorted) and splits.

    Raises Failure(DATASET_BAD) when the folders do not say which class an image is of.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    ignored = []
    for member in archive.infolist():
        parts = tuple(member.filename.replace("\\", "/").split("/"))
        if member.is_dir() or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            continue
        if Path(parts[-1]).suffix.lower() in SUFFIXES:
            found.append((member.filename, parts))
        else:
            ignored.append(member.filename)
    if not found:
        raise Failure(Code.DATASET_BAD, f"The zip has no images; it may hold {', '.join(sorted(SUFFIXES))} files.")
    while min(len(parts) for _, parts in found) >= 2 and len({parts[0] for _, parts in found}) == 1:
        found = [(name, parts[1:]) for name, parts in found]
    splits: list[SplitName | None] = [None] * len(found)
    if all(len(parts) >= 2 and parts[0].lower() in SPLIT_NAMES for _, parts in found):
        splits = [SPLIT_NAMES[parts[0].lower()] for _, parts in found]
        found = [(name, parts[1:]) for name, parts in found]
    depths = {len(parts) >= 2 for _, parts in found}
    if depths == {True, False}:
        stray = next(name for name, parts in found if len(parts) < 2)
        raise Failure(
            Code.DATASET_BAD,
            f"Some images lie in class folders and {stray!r} does not; put every image into a folder of its class.",
            where=stray,
        )
    class_names = sorted({parts[0] for _, parts in found}) if depths == {True} else None
    index = {name: position for position, name in enumerate(class_names or [])}
    files = [
        ImageFile(name, index[parts[0]] if class_names else None, split)
        for (name, parts), split in zip(found, splits, strict=True)
    ]
    return Listing(files, class_names, ignored)


def decode(archive: zipfile.ZipFile, name: str) -> Image.Image:
    """One image, decoded. Raises BadImage with the reason."""
    member = archive.getinfo(name)
    if member.file_size == 0 or member.file_size > MAX_FILE_BYTES:
        raise BadImage(f"the file has {member.file_size} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(archive.read(member)), formats=FORMATS)
        if image.width * image.height == 0:
            raise BadImage(f"it has {image.width} x {image.height} pixels")
        if getattr(image, "n_frames", 1) > 1:
            raise BadImage("it is animated")
        if image.mode not in MODES:
            raise BadImage(f"its pixels are {image.mode}; only 8-bit grey and RGB are read")
        image.load()
    except BadImage:
        raise
    # Decoders meet hostile bytes here and answer with nearly every exception there is; each means: not an image.
    except Exception as error:
        raise BadImage(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    return image


def check_bad_share(bad: list[tuple[str, str]], total: int) -> None:
    """`bad` are (name, reason). Raises Failure(DATASET_BAD) when they are more than 5 % of `total`."""
    if len(bad) > MAX_BAD_SHARE * total:
        name, reason = bad[0]
        raise Failure(
            Code.DATASET_BAD,
            f"{len(bad)} of {total} images cannot be used, more than {MAX_BAD_SHARE:.0%}; "
            f"the first is {name!r}: {reason}.",
            where=name,
        )


class ImageSamples:
    """The images of a zip that decode, as inputs of a network with one image input [N, 1 or 3, H, W].

    Every image is decoded once here; `files` are those that can be used and `skipped` how many cannot.
    Raises Failure: DATASET_MISMATCH when they do not have the network's shape, DATASET_BAD when too many are bad.
    """

    def __init__(self, path: Path, inputs: tuple[TensorInfo, ...], transform: Transform) -> None:
        self.info = _image_input(inputs)
        self.colour = COLOUR_OF_CHANNELS[self.info.shape[1] or 3]
        self.transform = transform
        self.archive = open_archive(path)
        listing = list_images(self.archive)
        self.class_names = listing.class_names
        self.files: list[ImageFile] = []
        self.cache: Tensor | None = None
        check_channels(transform, (len(self.colour),), self.info.name)
        bad: list[tuple[str, str]] = []
        for file in listing.files:
            try:
                pixels = self._pixels(file.name)
            except BadImage as error:
                bad.append((file.name, str(error)))
                continue
            self._keep(file, pixels, len(listing.files))
        check_bad_share(bad, len(listing.files))
        self.skipped = len(bad)
        if self.cache is not None:
            self.archive.close()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Rows) -> tuple[Tensor, ...]:
        if self.cache is not None:
            pixels = self.cache[torch.from_numpy(rows)]
        else:
            pixels = torch.stack([self._pixels(self.files[row].name) for row in rows.tolist()])
        return (normalise(pixels, self.transform, torch_dtype(self.info)),)

    def _keep(self, file: ImageFile, pixels: Tensor, total: int) -> None:
        wanted = self.info.shape[1:]
        if not self.files:
            self.shape = tuple(pixels.shape)
            if pixels.numel() * total <= CACHE_BYTES:
                self.cache = torch.empty((total, *self.shape), dtype=torch.uint8)
        fits = all(w is None or w == s for w, s in zip(wanted, pixels.shape, strict=True))
        if not fits or tuple(pixels.shape) != self.shape:
            other = list(wanted) if not fits else list(self.shape)
            raise Failure(
                Code.DATASET_MISMATCH,
                f"The image {file.name!r} is {list(pixels.shape)} after the transform, "
                f"{'the network takes' if not fits else 'others are'} {other} (channels, height, width); "
                "set `transform.resize` and `transform.crop`.",
                where=file.name,
            )
        if self.cache is not None:
            self.cache[len(self.files)] = pixels
        self.files.append(file)

    def _pixels(self, name: str) -> Tensor:
        """uint8 [C, H, W] after resize and crop."""
        image = resize_and_crop(decode(self.archive, name).convert(self.colour), self.transform, name)
        values = np.asarray(image)
        return torch.from_numpy(values[None].copy() if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def _image_input(inputs: tuple[TensorInfo, ...]) -> TensorInfo:
    first = inputs[0]
    if (
        len(inputs) != 1
        or len(first.shape) != 4
        or first.shape[1] not in (None, *COLOUR_OF_CHANNELS)
        or not torch_dtype(first).is_floating_point
    ):
        taken = ", ".join(f"{info.name!r}: {info.dtype} {info.shape}" for info in inputs)
        raise Failure(
            Code.DATASET_MISMATCH,
            "Image folders feed one floating-point input [N, 1 or 3, height, width]; "
            f"the network takes {taken}. Send the data as `.npz`.",
        )
    return first
