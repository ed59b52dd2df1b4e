"""Resizing images: by torch's operator where it computes the same, else axis by axis as the specification says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch._ops import OpOverload

from worker.engine.ingest.onnx.known import BATCHES, Operand, shape_of
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten
_NEAREST: dict[int, OpOverload] = {1: _A.upsample_nearest1d.vec, 2: _A.upsample_nearest2d.vec}
_LINEAR: dict[int, OpOverload] = {
    1: _A.upsample_linear1d.vec,
    2: _A.upsample_bilinear2d.vec,
    3: _A.upsample_trilinear3d.vec,
}
_CUBIC: dict[int, OpOverload] = {2: _A.upsample_bicubic2d.vec}
_SAMPLED = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
_OUTSIDE = {"zeros": 0, "border": 1, "reflection": 2}
"""torch's numbers for the ways of `GridSample`."""
MAXIMUM_SIDE = 1 << 15
MAXIMUM_PLACES = 1 << 24
"""Along a dimension that is resized: float32, in which both torch and the specification count them, goes no further."""
MAXIMUM_WEIGHTS = 1 << 26
"""Of the matrix that resizes one dimension where torch's operator does not."""


@dataclass(frozen=True)
class _Axis:
    dim: int
    before: int
    after: int
    scale: float

    @property
    def is_plain(self) -> bool:
        """Whether the scale is just the ratio of the sizes, as torch takes it to be."""
        return abs(self.before * self.scale - self.after) < 1e-3

    @property
    def moves(self) -> bool:
        return self.before != self.after or not self.is_plain


@dataclass(frozen=True)
class _Way:
    """How places of the result map to places of the source."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float = -0.75
    exclude_outside: bool = False


def resize(site: Site) -> Operand:
    """`Resize`, and `Upsample` before it."""
    value = site.operand(0)
    axes, way = _read(site, value)
    moved = [axis for axis in axes if axis.moves]
    if any(axis.dim == 0 for axis in moved):
        raise site.refuse("it resizes the batch")
    if not moved:
        return value
    spatial = [axis for axis in axes if axis.dim >= 2]
    if all(axis.dim >= 2 for axis in moved) and len(spatial) == site.rank(value) - 2:
        target = _torch_target(spatial, way)
        if target is not None:
            sizes = [axis.after for axis in spatial]
            corners = [] if way.mode == "nearest" else [way.coordinates == "align_corners"]
            return site.emit(target, value, sizes, *corners, None)
    for axis in moved:
        value = _resize_axis(site, value, axis, way)
    return value


def _read(site: Site, value: Operand) -> tuple[list[_Axis], _Way]:
    rank, modern = site.rank(value), site.kind == "Resize" and site.opset >= 11
    site.must_be("antialias", 0)
    site.must_be("keep_aspect_ratio_policy", "stretch")
    site.maybe_real("extrapolation_value")  # of a mode that is refused
    mode = site.text("mode")
    way = _Way(
        "linear" if mode == "bilinear" else mode,
        site.text("coordinate_transformation_mode") if modern else "asymmetric",
        site.text("nearest_mode") if modern else "simple",
        site.real("cubic_coeff_a") if modern else -0.75,
        bool(modern and site.flag("exclude_outside")),
    )
    if way.mode not in ("nearest", "linear", "cubic") or way.coordinates == "tf_crop_and_resize":
        raise site.refuse(f"the mode {way.mode!r} with {way.coordinates!r} is not read")
    dims = [site.axis(axis, rank) for axis in (site.maybe_integers("axes") or range(rank))]
    before = [shape_of(value)[dim] for dim in dims]
    site.fixed_sizes(value, 1)
    scales, sizes = _scales_and_sizes(site, modern)
    if sizes is not None:
        if len(sizes) != len(dims):
            raise site.refuse("it has not one size a dimension")
        sizes = [have if dim == 0 else want for dim, have, want in zip(dims, before, sizes, strict=True)]
        scales = [want / have for have, want in zip(before, sizes, strict=True)]
    elif scales is not None and len(scales) == len(dims):
        sizes = [math.floor(have * scale) for have, scale in zip(before, scales, strict=True)]
    else:
        raise site.refuse("it has neither sizes nor one scale a dimension")
    if any(not 0 < size <= max(MAXIMUM_SIDE, have) for have, size in zip(before, sizes, strict=True)):
        raise site.refuse(f"{sizes[:10]} are no sizes of an image")
    axes = [_Axis(*each) for each in zip(dims, before, sizes, scales, strict=True)]
    if any(axis.moves and axis.after > MAXIMUM_PLACES for axis in axes):
        raise site.refuse(f"it resizes to {sizes[:10]}; {MAXIMUM_PLACES} is the most along a dimension")
    return axes, way


def _scales_and_sizes(site: Site, modern: bool) -> tuple[list[float] | None, list[int] | None]:
    if not modern:
        scales = site.maybe_reals("scales") if site.has("scales") else None
        given = None if scales is not None else site.constant(1)
        return scales if given is None else [float(scale) for scale in given.tolist()], None
    site.optional(1)  # the region of a mode that is refused
    if site.optional(3) is not None and (wanted := site.sizes(3)):
        return None, [size[0] for size in wanted]
    scales_given = site.constant(2)
    return None if scales_given is None else [float(scale) for scale in scales_given.tolist()], None


def _torch_target(axes: list[_Axis], way: _Way) -> OpOverload | None:
    """torch's operator where it gives the same for every axis."""
    if way.mode == "nearest":
        same = all(np.array_equal(_nearest(axis, way), _torch_nearest(axis)) for axis in axes if axis.moves)
        return _NEAREST.get(len(axes)) if same else None
    if not all(axis.is_plain for axis in axes):
        return None
    usual = way.coordinates in ("half_pixel", "align_corners") or (
        way.coordinates == "pytorch_half_pixel" and all(axis.after > 1 for axis in axes)
    )
    if way.mode == "linear":
        return _LINEAR.get(len(axes)) if usual else None
    is_torch = way.cubic == -0.75 and not way.exclude_outside
    return _CUBIC.get(len(axes)) if usual and is_torch else None


def _torch_nearest(axis: _Axis) -> npt.NDArray[np.int64]:
    ratio = np.float32(axis.before) / np.float32(axis.after)
    places = np.floor(np.arange(axis.after, dtype=np.float32) * ratio).astype(np.int64)
    return np.asarray(np.minimum(places, axis.before - 1), dtype=np.int64)


def _places(axis: _Axis, way: _Way) -> npt.NDArray[np.float64]:
    """Where each element of the result lies in the source (the formulas of the operator's specification)."""
    steps = np.arange(axis.after, dtype=np.float64)
    scale = float(np.float32(axis.scale))
    match way.coordinates:
        case "asymmetric":
            return steps / scale
        case "align_corners":
            return steps * ((axis.before - 1) / (axis.after - 1) if axis.after > 1 else 0.0)
        case "pytorch_half_pixel" if axis.after == 1:
            return np.zeros(1)
        case "half_pixel_symmetric":
            adjustment = axis.after / (scale * axis.before)
            return axis.before / 2 * (1 - adjustment) + (steps + 0.5) / scale - 0.5
        case _:
            return (steps + 0.5) / scale - 0.5


def _nearest(axis: _Axis, way: _Way) -> npt.NDArray[np.int64]:
    places = _places(axis, way).astype(np.float32)
    match way.nearest:
        case "round_prefer_floor":
            found = np.ceil(places - np.float32(0.5))
        case "round_prefer_ceil":
            found = np.floor(places + np.float32(0.5))
        case "ceil":
            found = np.ceil(places)
        case "simple" if axis.scale < 1:
            found = np.ceil(places)
        case _:
            found = np.floor(places)
    return np.asarray(np.clip(found, 0, axis.before - 1), dtype=np.int64)


def _resize_axis(site: Site, value: Operand, axis: _Axis, way: _Way) -> Operand:
    if way.mode == "nearest":
        chosen = site.compute([torch.from_numpy(_nearest(axis, way))] * len(BATCHES))
        return site.emit(_A.index_select.default, value, axis.dim, chosen)
    if axis.before * axis.after > MAXIMUM_WEIGHTS:
        raise site.refuse(
            f"resizing {axis.before} to {axis.after} places in the mode {way.mode!r} with {way.coordinates!r} takes a "
            f"matrix of more than {MAXIMUM_WEIGHTS} weights; use `half_pixel` and a scale that gives whole sizes"
        )
    matrix = site.compute([torch.from_numpy(_weights(axis, way).T.astype(np.float32).copy())] * len(BATCHES))
    last = site.rank(value) - 1
    order = list(range(last + 1))
    order[axis.dim], order[last] = last, axis.dim
    turned = value if axis.dim == last else site.emit(_A.permute.default, value, order)
    result = site.emit(_A.matmul.default, turned, matrix)
    return result if axis.dim == last else site.emit(_A.permute.default, result, order)


def _weights(axis: _Axis, way: _Way) -> npt.NDArray[np.float64]:
    """The share of each element of the source in each of the result, [after, before]."""
    places = _places(axis, way)
    weights = np.zeros((axis.after, axis.before))
    rows = np.arange(axis.after)
    if way.mode == "linear":
        places = np.clip(places, 0, axis.before - 1)
        low = np.floor(places).astype(np.int64)
        share = places - low
        np.add.at(weights, (rows, low), 1 - share)
        np.add.at(weights, (rows, np.minimum(low + 1, axis.before - 1)), share)
        return weights
    low = np.floor(places).astype(np.int64)
    for tap in range(-1, 3):
        share = _cubic(np.abs(places - (low + tap)), way.cubic)
        column = low + tap
        if way.exclude_outside:
            share = np.where((column >= 0) & (column < axis.before), share, 0.0)
        np.add.at(weights, (rows, np.clip(column, 0, axis.before - 1)), share)
    return weights / weights.sum(1, keepdims=True) if way.exclude_outside else weights


def _cubic(distance: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def grid_sample(site: Site) -> Operand:
    """`GridSample`: an image read at the places that a second input names, from -1 to 1 on each axis."""
    value, grid = site.operand(0), site.operand(1)
    mode, outside, corners = site.text("mode"), site.text("padding_mode"), site.flag("align_corners")
    if mode not in _SAMPLED or outside not in _OUTSIDE:
        raise site.refuse(f"its `mode` {mode!r} or `padding_mode` {outside!r} is unknown")
    rank = site.rank(value)
    if rank not in (4, 5) or site.rank(grid) != rank or shape_of(grid)[-1] != rank - 2:
        raise site.refuse("its grid is not for an image of two or three dimensions")
    if rank == 5 and _SAMPLED[mode] == 2:
        raise site.refuse("cubic interpolation is of images of two dimensions")
    return site.emit(_A.grid_sampler.default, value, grid, _SAMPLED[mode], _OUTSIDE[outside], corners)
