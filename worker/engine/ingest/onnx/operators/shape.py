"""Operators that give a tensor other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from worker.engine.ingest.onnx.known import (
    BATCHES,
    Operand,
    PerBatch,
    Sizes,
    per_batch,
    shape_of,
    shapes_of,
)
from worker.engine.ingest.onnx.operators.merge import group_norm_of
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten


def reshape(site: Site) -> Operand:
    """0 copies a size, -1 is what is left."""
    value, keep_zero = site.operand(0), bool(site.maybe_integer("allowzero"))
    wanted, shapes = site.sizes(1), shapes_of(value)
    found = _freed(site, shapes, wanted, keep_zero) or [
        _shape(site, sizes, [size[index] for size in wanted], keep_zero) for index, sizes in enumerate(shapes)
    ]
    whole = group_norm_of(site, value, found)
    return site.reshape(value, found) if whole is None else whole


def _shape(site: Site, sizes: Sizes, wanted: list[int], keep_zero: bool) -> Sizes:
    if wanted.count(-1) > 1 or any(size < -1 for size in wanted):
        raise site.refuse(f"{wanted[:10]} are no sizes")
    if not keep_zero:
        if any(size == 0 and dim >= len(sizes) for dim, size in enumerate(wanted)):
            raise site.refuse(f"{wanted[:10]} copies a size that is not there")
        wanted = [sizes[dim] if size == 0 else size for dim, size in enumerate(wanted)]
    rest = math.prod(size for size in wanted if size != -1)
    total = math.prod(sizes)
    filled = tuple(total // rest if size == -1 and rest else size for size in wanted)
    if math.prod(filled) != total:
        raise site.refuse(f"a tensor of the sizes {list(sizes)} cannot take the sizes {wanted[:10]}")
    return filled


def _freed(site: Site, shapes: Sequence[Sizes], wanted: list[PerBatch], keep_zero: bool) -> list[Sizes] | None:
    """Sizes in which the batch is free again that a file for one size of the batch wrote down as a number.

    The batch goes where as many elements stand before it as in the source. Whether it belongs there is tried
    afterwards, on samples. `None` where that is no question.
    """
    own, fixed = per_batch(shapes), site.builder.fixed_batch
    varying = [dim for dim, size in enumerate(own) if not size.constant]
    if fixed is None or len(varying) != 1 or not all(size.constant for size in wanted):
        return None
    share, rest = divmod(own[varying[0]][0] * fixed, BATCHES[0])
    once = tuple(share if dim == varying[0] else size[0] for dim, size in enumerate(own))
    filled = _shape(site, once, [size[0] for size in wanted], keep_zero)
    before = math.prod(once[: varying[0]])
    place = next((place for place in range(len(filled)) if math.prod(filled[:place]) == before), None)
    if rest or place is None or filled[place] % fixed:
        return None
    return [(*filled[:place], filled[place] * batch // fixed, *filled[place + 1 :]) for batch in BATCHES]


def flatten(site: Site) -> Operand:
    value = site.operand(0)
    rank, axis = site.rank(value), site.integer("axis")
    axis = axis if axis == rank else site.axis(axis, rank)
    return site.reshape(value, [(math.prod(sizes[:axis]), math.prod(sizes[axis:])) for sizes in shapes_of(value)])


def squeeze(site: Site) -> Operand:
    value, axes = site.operand(0), site.axes(1)
    rank = site.rank(value)
    ones = [dim for dim, size in enumerate(per_batch(shapes_of(value))) if set(size) == {1}]
    dims = ones if axes is None else [site.axis(axis, rank) for axis in axes]
    if not set(dims) <= set(ones):
        raise site.refuse("it takes away a dimension that is not one")
    if not dims:
        return value
    return site.emit(_A.squeeze.dims, value, dims)


def unsqueeze(site: Site) -> Operand:
    value, axes = site.operand(0), site.axes(1) or []
    rank = site.rank(value) + len(axes)
    for axis in sorted(site.axis(axis, rank) for axis in axes):
        value = site.emit(_A.unsqueeze.default, value, axis)
    return value


def expand(site: Site) -> Operand:
    """Sizes broadcast both ways: a one in the wish keeps the size there is."""
    value = site.operand(0)
    own = per_batch(shapes_of(value))
    wanted = site.free_batch(site.sizes(1), shapes_of(value))
    rank = max(len(own), len(wanted))
    one = PerBatch([1] * len(BATCHES))
    own, wanted = ([one] * (rank - len(sizes)) + sizes for sizes in (own, wanted))
    sizes: list[int | PerBatch] = []
    for have, want in zip(own, wanted, strict=True):
        if have == want or want == one:
            sizes.append(-1 if len(sizes) >= rank - site.rank(value) else have)
        elif have == one:
            sizes.append(want)
        else:
            raise site.refuse("its sizes do not fit the tensor's")
    if all(size == -1 for size in sizes):
        return value
    return site.emit(_A.expand.default, value, sizes)


def tile(site: Site) -> Operand:
    value, times = site.operand(0), site.sizes(1)
    if len(times) != site.rank(value):
        raise site.refuse("it does not say how often for each dimension")
    if all(set(count) == {1} for count in times):
        return value
    repeats: list[int | PerBatch] = [count[0] if count.constant else count for count in times]
    return site.emit(_A.repeat.default, value, repeats)


def depth_to_space(site: Site) -> Operand:
    """CRD is torch's order; in DCR the block comes before the channels."""
    value, block = site.operand(0), site.integer("blocksize")
    channels, height, width = _image(site, value)
    mode = site.maybe_text("mode") or "DCR"
    if mode not in ("DCR", "CRD") or block < 1 or channels % block**2:
        raise site.refuse("its mode or block size is unknown")
    if mode == "CRD":
        return site.emit(_A.pixel_shuffle.default, value, block)
    inner = channels // block**2
    batches = [sizes[0] for sizes in shapes_of(value)]
    split = site.reshape(value, [(batch, block, block, inner, height, width) for batch in batches])
    moved = site.emit(_A.permute.default, split, [0, 3, 4, 1, 5, 2])
    return site.reshape(moved, [(batch, inner, height * block, width * block) for batch in batches])


def space_to_depth(site: Site) -> Operand:
    value, block = site.operand(0), site.integer("blocksize")
    channels, height, width = _image(site, value)
    if block < 1 or height % block or width % block:
        raise site.refuse("its block size does not divide the image")
    batches = [sizes[0] for sizes in shapes_of(value)]
    split = site.reshape(value, [(batch, channels, height // block, block, width // block, block) for batch in batches])
    moved = site.emit(_A.permute.default, split, [0, 3, 5, 1, 2, 4])
    return site.reshape(moved, [(batch, channels * block**2, height // block, width // block) for batch in batches])


def _image(site: Site, value: Operand) -> tuple[int, int, int]:
    if len(shape_of(value)) != 4:
        raise site.refuse("its input is not a batch of images")
    channels, height, width = site.fixed_sizes(value, 1)
    return channels, height, width
