"""Operators that take parts of tensors, put them together or surround them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from worker.engine.ingest.onnx.known import (
    BATCHES,
    Known,
    Operand,
    PerBatch,
    dtype_of,
    shape_of,
    shapes_of,
)
from worker.engine.ingest.onnx.operators.elementwise import cast_to
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten
_END = 2**63 - 1


def concat(site: Site) -> Operand:
    operands = site.operands()
    if len(operands) == 1:
        return operands[0]
    axis = site.axis(site.integer("axis"), site.rank(operands[0]))
    if site.builder.fixed_batch is not None and axis > 0:
        operands = _alike(site, operands)
    return site.emit(_A.cat.default, operands, axis)


def _alike(site: Site, operands: list[Operand]) -> list[Operand]:
    """What a file for one size of the batch holds once for that batch, beside values of each sample: repeated."""
    firsts = [PerBatch([sizes[0] for sizes in shapes_of(operand)]) for operand in operands]
    if PerBatch(BATCHES) not in firsts:
        return operands
    return [
        site.emit(_A.expand.default, operand, [PerBatch(BATCHES), *[-1] * (site.rank(operand) - 1)])
        if set(first) == {1}
        else operand
        for operand, first in zip(operands, firsts, strict=True)
    ]


def split(site: Site) -> list[Operand]:
    """Sizes are an attribute before opset 13, an input since; without them the parts are equal, the last may be
    smaller."""
    value = site.operand(0)
    axis = site.axis(site.integer("axis"), site.rank(value))
    total = PerBatch([sizes[axis] for sizes in shapes_of(value)])
    if not total.constant:
        raise site.refuse("it splits the batch")
    sizes = site.maybe_integers("split") if site.has("split") else site.integers(1)
    if sizes is None:
        count = site.maybe_integer("num_outputs") or len(site.results)
        if count != len(site.results):
            raise site.refuse(f"it has {len(site.results)} results, and makes {count} parts")
        each = -(-total[0] // count)
        sizes = [each] * (count - 1) + [total[0] - each * (count - 1)]
    if sum(sizes) != total[0] or min(sizes) < 0 or len(sizes) != len(site.results):
        raise site.refuse(f"{sizes[:10]} does not split {total[0]}")
    return site.emit_several(_A.split_with_sizes.default, value, sizes, axis)


def slice_(site: Site) -> Operand:
    """Bounds are attributes before opset 10, inputs since."""
    value = site.operand(0)
    if site.has("starts"):
        starts, ends = (
            [PerBatch([bound] * len(BATCHES)) for bound in site.maybe_integers(name) or []]
            for name in ("starts", "ends")
        )
        axes, steps = site.maybe_integers("axes"), None
    else:
        starts, ends = site.sizes(1), site.sizes(2)
        axes, steps = site.integers(3), site.integers(4)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise site.refuse("its bounds do not match")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        value = _slice(site, value, site.axis(axis, site.rank(value)), start, end, step)
    return value


def _slice(site: Site, value: Operand, axis: int, start: PerBatch, end: PerBatch, step: int) -> Operand:
    sizes = [shape[axis] for shape in shapes_of(value)]
    ranges = [range(*slice(a, b, step).indices(size)) for a, b, size in zip(start, end, sizes, strict=True)]
    if all(each == range(size) for each, size in zip(ranges, sizes, strict=True)):
        return value
    if step > 0:
        first = PerBatch([each.start for each in ranges])
        to_end = all(len(range(each.start, size, step)) == len(each) for each, size in zip(ranges, sizes, strict=True))
        last: Any = PerBatch([max(each.stop, each.start) for each in ranges])
        last = last[0] if last.constant else _END if to_end else last
        result = site.emit(_A.slice.Tensor, value, axis, first[0] if first.constant else first, last, step)
    elif all(each == range(size - 1, -1, -1) for each, size in zip(ranges, sizes, strict=True)):
        result = site.emit(_A.flip.default, value, [axis])
    else:
        starts, stops = zip(*((each.start, each.stop if each else each.start) for each in ranges), strict=True)
        chosen = site.emit(_A.arange.start_step, PerBatch(starts), PerBatch(stops), step)
        result = site.emit(_A.index_select.default, value, axis, chosen)
    return result


def gather(site: Site) -> Operand:
    """Rows of a table by known or computed places; negative places count from the end."""
    value, places = site.operand(0), site.operand(1)
    axis = site.axis(site.integer("axis"), site.rank(value))
    if isinstance(places, Known) and places.constant:
        size = [shape[axis] for shape in shapes_of(value)]
        chosen = places.tensor
        if int(chosen.numel()) and not (-min(size) <= int(chosen.min()) and int(chosen.max()) < min(size)):
            raise site.refuse(f"it takes an element that is not among {min(size)}")
        if len(set(size)) == 1:
            chosen = torch.where(chosen < 0, chosen + size[0], chosen)
        if chosen.dim() == 0:
            return site.emit(_A.select.int, value, axis, int(chosen))
        return _gather_known(site, value, axis, chosen)
    if isinstance(value, Known) and axis == 0 and value.tensor.dim() == 2 and dtype_of(value).is_floating_point:
        table = site.parameter(value, "weight") if isinstance(places, fx.Node) else value
        return site.emit(_A.embedding.default, table, cast_to(site, places, torch.int64))
    return site.emit(_A.index.Tensor, value, [None] * axis + [cast_to(site, places, torch.int64)])


def _gather_known(site: Site, value: Operand, axis: int, chosen: Tensor) -> Operand:
    flat = chosen.flatten().to(torch.int64)
    first = int(flat[0]) if flat.numel() else 0
    if bool((flat == torch.arange(first, first + flat.numel())).all()) and first >= 0:
        result = site.emit(_A.slice.Tensor, value, axis, first, first + flat.numel(), 1)
    else:
        result = site.emit(_A.index_select.default, value, axis, site.compute([flat] * len(BATCHES)))
    shapes = [(*sizes[:axis], *chosen.shape, *sizes[axis + 1 :]) for sizes in shapes_of(value)]
    return site.reshape(result, shapes)


def gather_elements(site: Site) -> Operand:
    value, places = site.operand(0), site.operand(1)
    axis = site.axis(site.integer("axis"), site.rank(value))
    if isinstance(places, Known) and bool((places.tensor < 0).any()):
        raise site.refuse("it counts from the end")
    return site.emit(_A.gather.default, value, axis, cast_to(site, places, torch.int64))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(site: Site) -> Operand:
    """Values written, or brought together by `reduction` (opset 16), at places along one dimension."""
    value, places, updates = site.operand(0), site.operand(1), site.operand(2)
    axis = site.axis(site.integer("axis"), site.rank(value))
    if isinstance(places, Known) and bool((places.tensor < 0).any()):
        raise site.refuse("it counts from the end")
    places, reduction = cast_to(site, places, torch.int64), site.maybe_text("reduction") or "none"
    if reduction == "none":
        return site.emit(_A.scatter.src, value, axis, places, updates)
    if reduction not in _REDUCTIONS:
        raise site.refuse(f"the reduction {reduction!r} is not known")
    return site.emit(_A.scatter_reduce.two, value, axis, places, updates, _REDUCTIONS[reduction])


def gather_nd(site: Site) -> Operand:
    """The last dimension of the places indexes the first dimensions of the tensor."""
    site.must_be("batch_dims", 0)
    value, places = site.operand(0), site.operand(1)
    return site.emit(_A.index.Tensor, value, _coordinates(site, value, places))


def scatter_nd(site: Site) -> Operand:
    """Only into places that are known and all different, where the order of writing does not matter."""
    site.must_be("reduction", "none")
    value, places, updates = site.operand(0), site.known(1), site.operand(2)
    rows = [each.reshape(-1, each.shape[-1]) for each in places.values]
    if any(len(set(map(tuple, each.tolist()))) != len(each) for each in rows):
        raise site.refuse("it writes to the same place twice")
    return site.emit(_A.index_put.default, value, _coordinates(site, value, places), updates)


def _coordinates(site: Site, value: Operand, places: Operand) -> list[Operand]:
    if shape_of(places)[-1] > site.rank(value):
        raise site.refuse(f"its places have {shape_of(places)[-1]} coordinates in {site.rank(value)} dimensions")
    places = cast_to(site, places, torch.int64)
    last = site.rank(places) - 1
    return [site.emit(_A.select.int, places, last, part) for part in range(shape_of(places)[-1])]


def pad(site: Site) -> Operand:
    """Amounts are an attribute before opset 11, inputs since."""
    value, mode = site.operand(0), site.maybe_text("mode") or "constant"
    rank = site.rank(value)
    fill: float | None = 0.0
    if site.has("pads"):
        amounts, axes = site.maybe_integers("pads") or [], list(range(rank))
        fill = site.maybe_real("value")
    else:
        amounts = site.integers(1) or []
        given = site.optional(2)
        fill = 0.0 if given is None else given.number if isinstance(given, Known) else None
        axes = [site.axis(axis, rank) for axis in (site.integers(3) or range(rank))]
    if fill is None or len(amounts) != 2 * len(axes):
        raise site.refuse("its amounts or its value are not fixed")
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = amounts[place], amounts[place + len(axes)]
    if before[0] or after[0]:
        raise site.refuse("it pads the batch")
    if not any(amounts):
        return value
    first = next(dim for dim in range(rank) if before[dim] or after[dim])
    pairs = [amount for dim in range(rank - 1, first - 1, -1) for amount in (before[dim], after[dim])]
    if mode == "constant":
        return site.emit(_A.pad.default, value, pairs, "constant", fill)
    modes = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    # torch pads the last one to three dimensions so, behind one or two others.
    dims = next((count for count in (1, 2, 3) if count >= rank - first and rank - count in (1, 2)), None)
    if mode not in modes or dims is None:
        raise site.refuse(f"the mode {mode!r} is not read over these dimensions")
    pairs += [0] * (2 * dims - len(pairs))
    return site.emit(_A.pad.default, value, pairs, modes[mode])


def one_hot(site: Site) -> Operand:
    """Places below zero count from the end."""
    places, depth, choices = site.operand(0), site.constant(1), site.known(2)
    rank = site.rank(places) + 1
    axis = site.axis(site.integer("axis"), rank)
    if depth is None or not 0 < int(depth) <= 1 << 24 or not choices.constant:
        raise site.refuse("its depth is not fixed")
    count = int(depth)
    wrapped = site.emit(_A.remainder.Scalar, cast_to(site, places, torch.int64), count)
    ladder = torch.arange(count).reshape([-1, *[1] * (rank - 1 - axis)])
    is_hot = site.emit(
        _A.eq.Tensor, site.emit(_A.unsqueeze.default, wrapped, axis), site.compute([ladder] * len(BATCHES))
    )
    off, on = (site.compute([value] * len(BATCHES)) for value in choices.tensor.flatten()[:2].clone())
    return site.emit(_A.where.self, is_hot, on, off)


def triangle(site: Site) -> Operand:
    value, diagonals = site.operand(0), site.integers(1) or [0]
    target = _A.triu.default if site.flag("upper") else _A.tril.default
    return site.emit(target, value, diagonals[0])
