"""Layers that exporters write as several operators, put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from worker.engine.ingest.onnx.known import Known, Operand, Sizes, shape_of, shapes_of
from worker.engine.ingest.onnx.operators.convolve import as_vector
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten


def merge(site: Site, left: Operand, right: Operand) -> Operand | None:
    """A vector added to a linear layer is its bias; a vector that scales or shifts the channels of a group
    normalization is its weight or bias. `None` where it is neither."""
    for node, vector in ((left, right), (right, left)):
        if isinstance(node, fx.Node) and node.meta.get("uses") == 1 and isinstance(vector, Known):
            if not (vector.trained and vector.constant):
                continue
            if site.kind == "Add" and node.target is _A.linear.default and len(node.args) == 2:
                width = shape_of(node)[-1]
                if vector.tensor.shape[-1:] == (width,) and vector.tensor.numel() == width:
                    return _with(node, *node.args, _attach(site, node, vector, "bias"))
            elif node.target is _A.group_norm.default and _is_of_channels(vector, shape_of(node)):
                value, groups, weight, bias, *rest = node.args
                if site.kind == "Mul" and weight is None and bias is None:
                    return _with(node, value, groups, _attach(site, node, vector, "weight"), None, *rest)
                if site.kind == "Add" and weight is not None and bias is None:
                    return _with(node, value, groups, weight, _attach(site, node, vector, "bias"), *rest)
    return None


def _with(node: fx.Node, *arguments: Any) -> fx.Node:
    """The node with other arguments, now standing for the operator that was merged into it."""
    node.args = arguments
    node.meta["uses"] = 0
    return node


def _attach(site: Site, node: fx.Node, vector: Known, leaf: str) -> fx.Node:
    return site.builder.attach(as_vector(vector), str(node.meta["layer"]), leaf)


def _is_of_channels(vector: Known, sizes: Sizes) -> bool:
    own = tuple(vector.tensor.shape)
    return len(own) == len(sizes) - 1 and own == (sizes[1], *[1] * (len(sizes) - 2))


def group_norm_of(site: Site, value: Operand, shapes: Sequence[Sizes]) -> Operand | None:
    """A group normalization written as an instance normalization of the groups, [batch, groups, the rest], between two
    reshapes; `value` is the instance normalization, about to be given `shapes`. `None` where it is not that."""
    if not isinstance(value, fx.Node) or value.target is not _A.instance_norm.default or value.meta.get("uses") != 1:
        return None
    grouped, epsilon = value.args[0], value.args[7]
    if not isinstance(grouped, fx.Node) or grouped.target is not _A.reshape.default or value.args[1] is not None:
        return None
    source = grouped.args[0]
    if not isinstance(source, fx.Node) or list(shapes_of(source)) != list(shapes):
        return None
    groups, channels = shape_of(grouped)[1], shape_of(source)[1]
    by_sample = all(have[0] == want[0] for have, want in zip(shapes_of(grouped), shapes_of(source), strict=True))
    if len(shape_of(grouped)) != 3 or not by_sample or channels % groups:
        return None
    return site.emit(_A.group_norm.default, source, groups, None, None, epsilon, False)
