"""Reductions, and operators that look for the largest elements."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worker.engine.ingest.onnx.known import Operand, dtype_of
from worker.engine.ingest.onnx.operators.elementwise import cast_to
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten
_Reduce = Callable[[Site, Operand, list[int], bool], Operand]


def reduction(site: Site) -> Operand:
    """`axes` is an attribute before opset 13 (ReduceSum) or 18, an input since."""
    value, keep = site.operand(0), site.flag("keepdims")
    rank = site.rank(value)
    axes = site.axes(1)
    nothing = bool(site.maybe_integer("noop_with_empty_axes"))
    if not axes and nothing:
        raise site.refuse("it reduces nothing")
    dims = sorted({site.axis(axis, rank) for axis in axes}) if axes else list(range(rank))
    if not dims:
        return value
    return _REDUCTIONS[site.kind](site, value, dims, keep)


def _mean(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.mean.dim, value, dims, keep)


def _sum(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    dtype = dtype_of(value)
    result = site.emit(_A.sum.dim_IntList, value, dims, keep)
    return cast_to(site, result, dtype)


def _maximum(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.amax.default, value, dims, keep)


def _minimum(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.amin.default, value, dims, keep)


def _product(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    dtype = dtype_of(value)
    for dim in reversed(dims):
        value = site.emit(_A.prod.dim_int, value, dim, keep)
    return cast_to(site, value, dtype)


def _sum_of_sizes(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return _sum(site, site.emit(_A.abs.default, value), dims, keep)


def _sum_of_squares(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return _sum(site, site.emit(_A.square.default, value), dims, keep)


def _length(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.linalg_vector_norm.default, value, 2, dims, keep)


def _log_of_sum(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.log.default, _sum(site, value, dims, keep))


def _log_of_sum_of_powers(site: Site, value: Operand, dims: list[int], keep: bool) -> Operand:
    return site.emit(_A.logsumexp.default, value, dims, keep)


_REDUCTIONS: dict[str, _Reduce] = {
    "ReduceL1": _sum_of_sizes,
    "ReduceL2": _length,
    "ReduceLogSum": _log_of_sum,
    "ReduceLogSumExp": _log_of_sum_of_powers,
    "ReduceMax": _maximum,
    "ReduceMean": _mean,
    "ReduceMin": _minimum,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of_squares,
}


def position(site: Site) -> Operand:
    """`ArgMax` and `ArgMin`: the first of equal ones."""
    site.must_be("select_last_index", 0)
    value = site.operand(0)
    axis = site.axis(site.integer("axis"), site.rank(value))
    target = _A.argmax.default if site.kind == "ArgMax" else _A.argmin.default
    return site.emit(target, value, axis, site.flag("keepdims"))


def largest(site: Site) -> list[Operand]:
    """`TopK`: values and places."""
    value = site.operand(0)
    count = site.maybe_integer("k") if site.has("k") else next(iter(site.integers(1) or []), None)
    if count is None:
        raise site.refuse("it does not say how many")
    axis = site.axis(site.integer("axis"), site.rank(value))
    biggest = site.maybe_integer("largest") != 0
    return site.emit_several(_A.topk.default, value, count, axis, biggest, site.maybe_integer("sorted") != 0)


def running_sum(site: Site) -> Operand:
    value, axes = site.operand(0), site.integers(1)
    exclusive, backwards = site.flag("exclusive"), site.flag("reverse")
    if axes is None or len(axes) != 1:
        raise site.refuse("its axis is not one number")
    axis = site.axis(axes[0], site.rank(value))
    turned = site.emit(_A.flip.default, value, [axis]) if backwards else value
    result = cast_to(site, site.emit(_A.cumsum.default, turned, axis), dtype_of(value))
    if exclusive:
        result = site.emit(_A.sub.Tensor, result, turned)
    return site.emit(_A.flip.default, result, [axis]) if backwards else result
