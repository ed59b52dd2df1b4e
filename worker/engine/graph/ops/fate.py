"""Looking ahead: what becomes of a dimension that a split creates."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import fx

from worker.engine.graph.ops.call import Attention, arguments_of
from worker.engine.graph.ops.dimensions import moved_dims
from worker.engine.graph.shapes import Sizes, is_tensor, sizes_of

Fate = Literal["packed", "heads", "features", "unknown"]
_Place = tuple[fx.Node, int]
_LOOKS = 400
_PRODUCTS = frozenset({"scaled_dot_product_attention", "matmul", "bmm", "baddbmm"})
_VIEWS = frozenset({"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"})
_MOVES = frozenset({"permute", "transpose", "swapaxes", "t", "movedim"})
_SPLITS = frozenset({"split", "chunk", "split_with_sizes"})


def pick_axis(node: fx.Node, dims: list[int], attention: Attention, avoided: frozenset[int]) -> int:
    """Channels were split into `dims` and could shrink along any of them: choose one.

    A dimension that packs several tensors (query, key, value) is never chosen, an `avoided` one only when all are.
    Where attention follows, the one asked for; else the largest.
    """
    fates: dict[int, Fate] = {dim: _fate(node, dim) for dim in dims}
    sizes = sizes_of(node)
    live = [dim for dim in dims if fates[dim] != "packed"] or dims
    live = [dim for dim in live if dim not in avoided] or live
    wanted = [dim for dim in live if fates[dim] == attention]
    if wanted:
        return wanted[0]
    undecided = [dim for dim in live if fates[dim] == "unknown"] or live
    return max(undecided, key=lambda dim: sizes[dim])


def _fate(node: fx.Node, dim: int) -> Fate:
    """Follow dimension `dim` of `node` through everything that moves it until an operator says what it is."""
    waiting: list[_Place] = [(node, dim)]
    seen = {(node, dim)}
    while waiting and len(seen) < _LOOKS:
        at, place = waiting.pop(0)
        for user in at.users:
            meaning = _meaning(user, at, place)
            if meaning is not None:
                return meaning
            fresh = [found for found in _next(user, at, place) if found not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
    return "unknown"


def _meaning(user: fx.Node, at: fx.Node, dim: int) -> Fate | None:
    operator, rank = _operator(user), len(sizes_of(at))
    if operator in _PRODUCTS:
        return "features" if dim >= rank - 2 else "heads"
    if operator in ("select", "unbind") and arguments_of(user)["dim"] % rank == dim:
        return "packed"
    if operator in _SPLITS and arguments_of(user)["dim"] % rank == dim and user.meta["sizes"][0][dim] == 1:
        return "packed"
    return None


def _next(user: fx.Node, at: fx.Node, dim: int) -> list[_Place]:
    """Where dimension `dim` of `at` is in what `user` gives; nothing when it ends or changes its size there."""
    operator, sizes = _operator(user), sizes_of(at)
    if operator == "unbind":
        cut = arguments_of(user)["dim"] % len(sizes)
        return [(item, dim - (dim > cut)) for item in user.users]
    if operator in _SPLITS:
        return [(item, dim) for item in user.users if sizes_of(item)[dim] == sizes[dim]]
    if user.op == "output" or not is_tensor(user):
        return []
    result = sizes_of(user)
    if operator == "select":
        return [(user, dim - (dim > arguments_of(user)["dim"] % len(sizes)))]
    if operator in _MOVES:
        return [(user, moved_dims(user).index(dim))]
    if operator in _VIEWS:
        place = _containing(sizes, dim, result)
        return [] if place is None else [(user, place)]
    if operator == "unsqueeze":
        return [(user, dim + (arguments_of(user)["dim"] % len(result) <= dim))]
    place = dim + len(result) - len(sizes)
    return [(user, place)] if place >= 0 and result[place] == sizes[dim] else []


def _containing(before: Sizes, dim: int, after: Sizes) -> int | None:
    """The dimension of the reshaped tensor that holds all of `dim`."""
    stride = math.prod(before[dim + 1 :])
    for place, size in enumerate(after):
        own = math.prod(after[place + 1 :])
        if size > 1 and own <= stride and own * size >= stride * before[dim]:
            return place
    return None


def _operator(node: fx.Node) -> str:
    return node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""
