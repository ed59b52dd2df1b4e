"""From a stored sample to a network input, in the order of `models.spec.Transform`."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from models.errors import Code, Failure
from models.image_rules import resized
from models.spec import Transform


def resize_and_crop(image: Image.Image, transform: Transform, name: str) -> Image.Image:
    """Shorter side to `resize` pixels (bilinear, antialiased), then a square of `crop` pixels from the centre.

    The arithmetic is torchvision's `Resize` and `CenterCrop` on PIL images, so that networks see what they were
    trained on. Raises Failure(DATASET_MISMATCH) when the image is smaller than the crop.
    """
    if transform.resize is not None:
        height, width = resized(image.height, image.width, transform.resize)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    if transform.crop is not None:
        width, height = image.size
        if min(width, height) < transform.crop:
            raise Failure(
                Code.DATASET_MISMATCH,
                f"The image {name!r} is {width} x {height} pixels, smaller than `crop` {transform.crop}; "
                "set `resize` to at least `crop`.",
                where=name,
            )
        left, top = round((width - transform.crop) / 2.0), round((height - transform.crop) / 2.0)
        image = image.crop((left, top, left + transform.crop, top + transform.crop))
    return image


def normalise(values: Tensor, transform: Transform, dtype: torch.dtype) -> Tensor:
    """`(values * scale - mean) / std` in float32, then cast to `dtype`. `values` [N, C, …]; mean and std per C or one.

    The scale defaults to 1/255 for uint8 values, else 1.
    """
    scale = transform.scale
    if scale is None:
        scale = 1.0 / 255.0 if values.dtype == torch.uint8 else 1.0
    result = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    if scale != 1.0:
        result = result * scale
    if transform.mean is not None:
        result = result - _per_channel(transform.mean, result)
    if transform.std is not None:
        result = result / _per_channel(transform.std, result)
    return result.to(dtype)


def check_channels(transform: Transform, shape: tuple[int, ...], name: str) -> None:
    """`shape` of one sample [C, …]. Raises Failure(DATASET_MISMATCH) when mean or std are not of length C or 1."""
    channels = shape[0] if shape else 1
    for field, numbers in (("mean", transform.mean), ("std", transform.std)):
        if numbers is not None and len(numbers) not in (1, channels):
            raise Failure(
                Code.DATASET_MISMATCH,
                f"`transform.{field}` has {len(numbers)} numbers and the input {name!r} has {channels} channels; "
                "give one number, or one for each channel.",
                where=f"/data/transform/{field}",
            )


def _per_channel(numbers: list[float], values: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=values.dtype).reshape(-1, *[1] * max(0, values.ndim - 2))
