"""Whether images of some sizes have the network's size after `resize` and `crop`."""

from __future__ import annotations

from collections.abc import Iterable

from models.errors import FieldProblem
from models.inspection import ImageSizes, TensorInfo
from models.spec import Transform


def check_image_sizes(transform: Transform, image: TensorInfo, sizes: ImageSizes | None) -> Iterable[FieldProblem]:
    """`image` is the network's input [N, channels, height, width]; without `sizes` only what holds for all is checked.

    What is not decided by the smallest and the largest side (images of several shapes, resized and not cropped) is
    left to the job.
    """
    if transform.crop is not None:
        yield from _check_crop(transform, transform.crop, image, sizes)
        return
    if sizes is None:
        return
    heights, widths = (sizes.minimum_height, sizes.maximum_height), (sizes.minimum_width, sizes.maximum_width)
    one_size = heights[0] == heights[1] and widths[0] == widths[1]
    if not one_size and transform.resize is None:
        message = (
            f"The images have heights of {heights[0]} to {heights[1]} and widths of {widths[0]} to {widths[1]} pixels; "
            f"the network takes {_shown(image)}. Set `resize` and `crop`."
        )
        yield FieldProblem(pointer="/data/transform/crop", message=message)
    if one_size:
        height, width = resized(heights[0], widths[0], transform.resize)
        if any(
            side is not None and side != found for side, found in zip(image.shape[2:], (height, width), strict=True)
        ):
            after = " after `resize`" if transform.resize else ""
            message = (
                f"The images are {height} x {width} pixels{after}, and the network takes {_shown(image)} "
                "(height x width). Set `resize` and `crop`."
            )
            yield FieldProblem(pointer="/data/transform/crop", message=message)


def resized(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """Height and width once the shorter side is `shorter` pixels, as torchvision's `Resize` rounds them."""
    if shorter is None:
        return height, width
    if width <= height:
        return max(1, int(shorter * height / width)), shorter
    return shorter, max(1, int(shorter * width / height))


def _check_crop(transform: Transform, crop: int, image: TensorInfo, sizes: ImageSizes | None) -> Iterable[FieldProblem]:
    if any(side is not None and side != crop for side in image.shape[2:]):
        message = f"`crop` gives {crop} x {crop} pixels and the network takes {_shown(image)}."
        yield FieldProblem(pointer="/data/transform/crop", message=message)
    if transform.resize is not None:
        if transform.resize < crop:
            message = f"`resize` to {transform.resize} is smaller than `crop` {crop}: make it at least as large."
            yield FieldProblem(pointer="/data/transform/resize", message=message)
        return
    smallest = None if sizes is None else min(sizes.minimum_height, sizes.minimum_width)
    if smallest is not None and smallest < crop:
        message = f"The smallest image has a side of {smallest} pixels, less than `crop` {crop}. Set `resize` too."
        yield FieldProblem(pointer="/data/transform/crop", message=message)


def _shown(image: TensorInfo) -> str:
    return " x ".join("any" if side is None else str(side) for side in image.shape[2:])
