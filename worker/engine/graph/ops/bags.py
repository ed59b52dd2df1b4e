"""`embedding_bag`, read as look-ups and a reduction.

The operator itself is never run: its native code reads wherever the offsets point (torch 2.13 checks neither their
order nor their end). Bags are those of `nn.EmbeddingBag` for rows of indices, which it flattens; others are refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from models.errors import Code, Failure
from worker.engine.graph.ops.call import arguments_of, call_before

aten = torch.ops.aten
_SUM, _MEAN, _MAX = range(3)


def in_rows(node: fx.Node) -> None:
    """Put `embedding`, and what reduces it, in the place of `node`.

    Raises `Failure` (UNSUPPORTED_OP) when its bags are not rows of indices.
    """
    arguments = arguments_of(node)
    indices, weights = _rows(arguments["indices"]), arguments["per_sample_weights"]
    scales = None if weights is None else _rows(weights)
    fits = weights is None or (scales is not None and indices is not None and _shape(scales) == _shape(indices))
    if indices is None or not fits or not _begin_every_row(arguments, indices) or arguments["scale_grad_by_freq"]:
        raise Failure(
            Code.UNSUPPORTED_OP,
            f"the bags of {node.name} are no rows of indices of one length: give the embedding bag indices of two "
            "dimensions, one row a sample",
            where=node.name,
        )
    if any(item.target is not operator.getitem or (item.args[1] != 0 and item.users) for item in node.users):
        raise Failure(Code.UNSUPPORTED_OP, f"{node.name} is asked where its values came from", where=node.name)
    table, padding = arguments["weight"], arguments["padding_idx"]
    rows = [*_shape(indices), _shape(table)[1]]
    found = call_before(node, rows, aten.embedding.default, table, indices)
    if scales is not None:
        scales = call_before(node, [*rows[:2], 1], aten.unsqueeze.default, scales, -1)
        found = call_before(node, rows, aten.mul.Tensor, found, scales)
    if padding is None or (padding < 0 and node.target is not aten.embedding_bag.padding_idx):
        reduced = _reduced(node, found, arguments["mode"])
    else:
        reduced = _reduced_but(node, found, indices, padding % _shape(table)[0], arguments["mode"])
    for item in list(node.users):
        if item.args[1] == 0:
            reduced.meta = dict(item.meta)
            item.replace_all_uses_with(reduced)


def _reduced(node: fx.Node, found: fx.Node, mode: int) -> fx.Node:
    target = {_SUM: aten.sum.dim_IntList, _MEAN: aten.mean.dim, _MAX: aten.amax.default}[mode]
    rows = _shape(found)
    return call_before(node, [rows[0], rows[2]], target, found, [1])


def _reduced_but(node: fx.Node, found: fx.Node, indices: fx.Node, padding: int, mode: int) -> fx.Node:
    """Without the places of the index `padding`; a bag of nothing else is zero."""
    rows = _shape(found)
    pads = call_before(node, rows[:2], aten.eq.Scalar, indices, padding)
    pads = call_before(node, [*rows[:2], 1], aten.unsqueeze.default, pads, -1)
    if mode == _MAX:
        found = call_before(node, rows, aten.masked_fill.Scalar, found, pads, float("-inf"))
        largest = _reduced(node, found, mode)
        empty = call_before(node, [rows[0], 1], aten.all.dim, pads, 1)
        return call_before(node, [rows[0], rows[2]], aten.masked_fill.Scalar, largest, empty, 0.0)
    found = call_before(node, rows, aten.masked_fill.Scalar, found, pads, 0.0)
    total = _reduced(node, found, _SUM)
    if mode == _SUM:
        return total
    kept = call_before(node, [*rows[:2], 1], aten.logical_not.default, pads)
    kept = call_before(node, [rows[0], 1], aten.sum.dim_IntList, kept, [1])
    kept = call_before(node, [rows[0], 1], aten.clamp_min.default, kept, 1)
    return call_before(node, _shape(total), aten.div.Tensor, total, kept)


def _begin_every_row(arguments: dict[str, Any], indices: fx.Node) -> bool:
    """Whether the offsets are the places where rows begin, up to the last one."""
    offsets = arguments["offsets"]
    if arguments["include_last_offset"] or offsets.target not in (aten.arange.start_step, aten.arange.start):
        return False
    said = arguments_of(offsets)
    return (said["start"], said.get("step", 1)) == (0, _shape(indices)[1]) and _is_size_of(said["end"], indices)


def _is_size_of(end: Any, indices: fx.Node) -> bool:
    count, length = _shape(indices)
    if not isinstance(end, fx.Node):
        return isinstance(count, int) and end == count * length
    if end.target in (aten.sym_numel.default, aten.numel.default):
        return end.args[0] is indices or _rows(end.args[0]) is indices
    if end.target is operator.mul and length in end.args:
        return any(_is_batch_of(other, indices) for other in end.args)
    return length == 1 and _is_batch_of(end, indices)


def _is_batch_of(size: Any, indices: fx.Node) -> bool:
    """Whether `size` is how many rows there are: asked of the rows, or of another input, whose first dimension is the
    batch as that of the rows is."""
    if not isinstance(size, fx.Node) or size.target is not aten.sym_size.int or size.args[1] != 0:
        return False
    source = size.args[0]
    inputs = [node for node in (source, indices) if isinstance(node, fx.Node) and node.op == "placeholder"]
    return source is indices or (len(inputs) == 2 and all(_shape(node)[0] is None for node in inputs))


def _rows(flat: Any) -> fx.Node | None:
    """The rows that were flattened to `flat`, if they all have one length."""
    if not isinstance(flat, fx.Node) or flat.target not in (aten.reshape.default, aten.view.default):
        return None
    source = flat.args[0]
    if not isinstance(source, fx.Node) or len(_shape(source)) != 2 or not isinstance(_shape(source)[1], int):
        return None
    return source if flat.args[1] == [-1] else None


def _shape(node: fx.Node) -> list[Any]:
    return list(node.meta.get("shape", ()))
