"""Arguments of operators that multiply and normalise, with parameters of their own."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from tests.engine.graph.drawing import Drawing, Place, Unfit, target_of

aten = torch.ops.aten


def convolution(drawing: Drawing, name: str) -> list[Place]:
    """Plain, grouped or depthwise."""
    spatial = int(re.findall(r"\d", name)[0])
    place = drawing.value(spatial + 2)
    channels = drawing.shape(place)[1]
    groups = drawing.pick([1, channels, *([2] if channels % 2 == 0 else [])])
    kernel = [drawing.pick([1, 3] if name.endswith("padding") else [1, 2])] * spatial
    if "transpose" in name:
        weight = drawing.parameter(channels, 2, *kernel)
        bias, zero = drawing.parameter(2 * groups), [0] * spatial
        return drawing.call(target_of(name), place, weight, bias, [2] * spatial, zero, zero, groups)
    weight = drawing.parameter(2 * groups, channels // groups, *kernel)
    padding: Any = "same" if name.endswith("padding") else [0] * spatial
    bias = drawing.parameter(2 * groups)
    return drawing.call(target_of(name), place, weight, bias, [1] * spatial, padding, [1] * spatial, groups)


def linear(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    outer = drawing.pick([4, 8])
    weight = drawing.parameter(outer, drawing.shape(place)[-1])
    return drawing.call(target_of(name), place, weight, drawing.pick([None, drawing.parameter(outer)]))


def product(drawing: Drawing, name: str) -> list[Place]:
    """A value times a parameter, or times its own transpose."""
    ranks = {"mm": (2,), "addmm": (2,), "bmm": (3,), "baddbmm": (3,)}.get(name.split(".")[0], (2, 3, 4))
    place = drawing.value(*ranks)
    shape = drawing.shape(place)
    if ranks == (3,):
        (right,) = drawing.call(aten.transpose.int, drawing.positive(place), 1, 2)
    else:
        right = drawing.parameter(shape[-1], 6)
    added = (drawing.parameter(drawing.shape(right)[-1]),) if "add" in name else ()
    return drawing.call(target_of(name), *added, place, right)


def attention(drawing: Drawing, name: str) -> list[Place]:
    """A value as query, key and value; heads before the last two dimensions where there are four."""
    place = drawing.value(3, 4)
    features = drawing.shape(place)[-1]
    query, key, value = (
        drawing.call(aten.linear.default, place, drawing.parameter(features, features), None)[0] for _ in range(3)
    )
    return drawing.call(target_of(name), query, key, value)


def einsum(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3)
    weight = drawing.parameter(drawing.shape(place)[-1], 6)
    equation = drawing.pick(["bij,jk->bik", "bij,jk->bki", "b i j, j k -> b k"])
    return drawing.call(target_of(name), equation, [place, weight])


def per_channel(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    if name == "instance_norm.default":
        place = drawing.value(3, 4, 5)
        if math.prod(drawing.shape(place)[2:]) == 1:
            raise Unfit("one position has no variance")
    size = drawing.shape(place)[1]
    if name == "prelu.default":
        return drawing.call(target_of(name), place, drawing.parameter(drawing.pick([1, size])))
    scale = (drawing.parameter(size), drawing.parameter(size))
    if name == "instance_norm.default":
        return drawing.call(target_of(name), place, *scale, None, None, True, 0.1, 1e-3, False)
    statistics = (drawing.buffer(torch.rand(size)), drawing.buffer(torch.rand(size) + 0.5))
    return drawing.call(target_of(name), place, *scale, *statistics, False, 0.1, 1e-3, False)


def group_norm(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    size = drawing.shape(place)[1]
    groups = drawing.pick([1, size, *([2] if size % 2 == 0 else [])])
    return drawing.call(target_of(name), place, groups, drawing.parameter(size), drawing.parameter(size), 1e-3)


def last_dims(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    shape = [drawing.shape(place)[-1]]
    bias = (drawing.parameter(*shape),) if name.startswith("layer") else ()
    return drawing.call(target_of(name), place, shape, drawing.parameter(*shape), *bias, 1e-3)


def weight_norm(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    weight = drawing.parameter(8, drawing.shape(place)[-1])
    (normal,) = drawing.call(target_of(name), weight, drawing.parameter(8, 1), 0)
    return drawing.call(aten.linear.default, place, normal, None)


def outer(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    size = drawing.shape(place)[-1]
    (weight,) = drawing.call(target_of(name), drawing.parameter(8), drawing.parameter(size))
    return drawing.call(aten.linear.default, place, weight, None)


def embedding(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    chosen = drawing.buffer(torch.tensor([2, 0, 1]))
    (rows,) = drawing.call(target_of(name), drawing.parameter(5, drawing.shape(place)[-1]), chosen)
    return drawing.call(aten.linear.default, place, rows, None)


def bilinear(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2)
    size = drawing.shape(place)[-1]
    return drawing.call(target_of(name), place, place, drawing.parameter(4, size, size), None)


def vector_product(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2)
    size = drawing.shape(place)[-1]
    if name in ("dot.default", "vdot.default"):
        (product,) = drawing.call(target_of(name), drawing.parameter(size), drawing.parameter(size))
    else:
        (product,) = drawing.call(target_of(name), place, drawing.parameter(size))
        (product,) = drawing.call(aten.unsqueeze.default, product, 1)
    return drawing.call(aten.mul.Tensor, place, product)


def tensordot(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    weight = drawing.parameter(drawing.shape(place)[-1], 4)
    return drawing.call(target_of(name), place, weight, [len(drawing.shape(place)) - 1], [0])


def cell(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2)
    inner, hidden = drawing.shape(place)[-1], 4
    gates = {"gru": 3, "lstm": 4}.get(name.split("_")[0], 1)
    state, memory = (
        drawing.call(aten.linear.default, place, drawing.parameter(hidden, inner), None)[0] for _ in range(2)
    )
    states: Any = [state, memory] if gates == 4 else state
    weights = drawing.parameter(gates * hidden, inner), drawing.parameter(gates * hidden, hidden)
    biases = drawing.parameter(gates * hidden), drawing.parameter(gates * hidden)
    return drawing.call(target_of(name), place, states, *weights, *biases)
