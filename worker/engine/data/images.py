"""Encoded images as network inputs: decoded in memory by Pillow, by their bytes and not by their names.

What cannot be decoded soundly (truncated, animated, CMYK, 16-bit, empty, larger than 50 million pixels) is skipped and
counted.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Transform
from worker.engine.data.pictures import BadImage, Pictures
from worker.engine.data.samples import torch_dtype
from worker.engine.data.splits import Rows
from worker.engine.data.transform import check_channels, normalise, resize_and_crop

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
MAX_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = None
"""Pillow would warn while it reads the header, and an error can be made of a warning in one thread alone."""
MAX_BAD_SHARE = 0.05
CACHE_BYTES = 2 << 30
"""Decoded images are kept in memory when all of them together are at most this large."""
COLOUR_OF_CHANNELS = {1: "L", 3: "RGB"}


def decode(content: bytes) -> Image.Image:
    """One image, decoded. Raises BadImage with the reason."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
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
    """The images that decode, as inputs of a network with one image input [N, 1 or 3, H, W].

    Every image is decoded once here; `kept` are the positions of those that can be used, `skipped` counts the others.
    Raises Failure: DATASET_MISMATCH when they do not have the network's shape, DATASET_BAD when too many are bad.
    """

    def __init__(self, pictures: Pictures, inputs: tuple[TensorInfo, ...], transform: Transform) -> None:
        self.info = _image_input(inputs)
        self.colour = COLOUR_OF_CHANNELS[self.info.shape[1] or 3]
        self.transform = transform
        self.pictures = pictures
        self.cache: Tensor | None = None
        check_channels(transform, (len(self.colour),), self.info.name)
        total = len(pictures.names)
        kept: list[int] = []
        bad: list[tuple[str, str]] = []
        for index, name in enumerate(pictures.names):
            try:
                pixels = self._pixels(index)
            except BadImage as error:
                bad.append((name, str(error)))
                continue
            self._keep(name, pixels, len(kept), total)
            kept.append(index)
        check_bad_share(bad, total)
        self.kept: Rows = np.array(kept, dtype=np.int64)
        self.skipped = len(bad)

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, rows: Rows) -> tuple[Tensor, ...]:
        if self.cache is not None:
            pixels = self.cache[torch.from_numpy(rows)]
        else:
            pixels = torch.stack([self._pixels(index) for index in self.kept[rows].tolist()])
        return (normalise(pixels, self.transform, torch_dtype(self.info)),)

    def _keep(self, name: str, pixels: Tensor, position: int, total: int) -> None:
        wanted = self.info.shape[1:]
        if position == 0:
            self.shape = tuple(pixels.shape)
            if pixels.numel() * total <= CACHE_BYTES:
                self.cache = torch.empty((total, *self.shape), dtype=torch.uint8)
        fits = all(w is None or w == s for w, s in zip(wanted, pixels.shape, strict=True))
        if not fits or tuple(pixels.shape) != self.shape:
            other = list(wanted) if not fits else list(self.shape)
            raise Failure(
                Code.DATASET_MISMATCH,
                f"The image {name!r} is {list(pixels.shape)} after the transform, "
                f"{'the network takes' if not fits else 'others are'} {other} (channels, height, width); "
                "set `transform.resize` and `transform.crop`.",
                where=name,
            )
        if self.cache is not None:
            self.cache[position] = pixels

    def _pixels(self, index: int) -> Tensor:
        """uint8 [C, H, W] after resize and crop."""
        image = decode(self.pictures.read(index)).convert(self.colour)
        values = np.asarray(resize_and_crop(image, self.transform, self.pictures.names[index]))
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
            "Images feed one floating-point input [N, 1 or 3, height, width]; "
            f"the network takes {taken}. Send the data as `.npz`.",
        )
    return first
