"""Arguments of operators that move, take, repeat and put together parts of tensors."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.engine.graph.drawing import Drawing, Place, target_of
from tests.engine.graph.families.values import companion

aten = torch.ops.aten


def move_dims(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    rank, dim = len(drawing.shape(place)), drawing.dimension(place)
    other = drawing.dimension(place)
    order = [0, *range(2, rank), 1]
    given: dict[str, tuple[Any, ...]] = {
        "permute.default": (order,),
        "movedim.int": (dim, other),
        "movedim.intlist": ([dim], [other]),
        "t.default": (),
        "numpy_T.default": (),
        "adjoint.default": (),
        "mT.default": (),
    }
    if name == "t.default":
        (place,) = drawing.call(aten.select.int, drawing.value(3), 0, 0)
    if name == "numpy_T.default":
        (place,) = drawing.call(aten.select.int, place, 0, 0)
    return drawing.call(target_of(name), place, *given.get(name, (dim, other)))


def squeeze(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    (single,) = drawing.call(aten.unsqueeze.default, place, drawing.dimension(place))
    dim = drawing.dimension(single)
    given = {"squeeze.default": (), "squeeze.dim": (dim,), "squeeze.dims": ([dim],)}[name]
    return drawing.call(target_of(name), single, *given)


def unsqueeze(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    return drawing.call(target_of(name), place, drawing.dimension(place))


def view(drawing: Drawing, name: str) -> list[Place]:
    """The last dimensions merged, or one of them split."""
    place = drawing.value()
    shape = drawing.shape(place)
    dim = drawing.dimension(place)
    shapes = [[-1, *shape[1:dim], math.prod(shape[dim:])]]
    if shape[dim] % 2 == 0:
        shapes += [[-1, *shape[1:dim], 2, shape[dim] // 2, *shape[dim + 1 :]]]
        shapes += [[-1, *shape[1:dim], shape[dim] // 2, 2, *shape[dim + 1 :]]]
    if name == "view.default":
        (place,) = drawing.call(aten.contiguous.default, place)
    return drawing.call(target_of(name), place, drawing.pick(shapes))


def flatten(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4, 5)
    return drawing.call(target_of(name), place, drawing.dimension(place), -1)


def unflatten(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    size = drawing.shape(place)[dim]
    return drawing.call(target_of(name), place, dim, drawing.pick([[2, size // 2], [size // 2, 2], [1, size]]))


def view_as(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    (flat,) = drawing.call(aten.flatten.using_ints, place, 1)
    return drawing.call(target_of(name), flat, place)


def split(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    size = drawing.shape(place)[dim]
    first = drawing.pick(range(1, size)) if size > 1 else 1
    given: dict[str, Any] = {
        "split.Tensor": max(1, size // 2),
        "split_with_sizes.default": [first, size - first],
        "tensor_split.indices": [first],
    }
    return drawing.call(target_of(name), place, given.get(name, 2), dim)


def cat(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    shape = drawing.shape(place)
    fit = [other for other in drawing.pool if len(drawing.shape(other)) == len(shape)]
    fit = [
        o for o in fit if all(a == b or d == dim for d, (a, b) in enumerate(zip(drawing.shape(o), shape, strict=True)))
    ]
    return drawing.call(target_of(name), [place, drawing.pick(fit), *fit[:1]], dim)


def stack(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    other = companion(drawing, place)
    if drawing.shape(other) != drawing.shape(place):
        (other,) = drawing.call(aten.mul.Tensor, place, other)
    return drawing.call(target_of(name), [place, other], drawing.dimension(place))


def slice_(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    size = drawing.shape(place)[dim]
    begin = drawing.pick(range(size))
    end = drawing.pick([*range(begin + 1, size + 1), 2**63 - 1])
    return drawing.call(target_of(name), place, dim, begin, end, drawing.pick([1, 1, 1, 2]))


def narrow(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    size = drawing.shape(place)[dim]
    begin = drawing.pick(range(size))
    return drawing.call(target_of(name), place, dim, begin, drawing.pick(range(1, size - begin + 1)))


def select_one(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4, 5)
    dim = drawing.dimension(place)
    return drawing.call(target_of(name), place, dim, *((0,) if name == "select.int" else ()))[:3]


def index(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    size = drawing.shape(place)[dim]
    chosen = drawing.buffer(torch.arange(0, size, 2))
    if name == "index_select.default":
        return drawing.call(target_of(name), place, dim, chosen)
    return drawing.call(target_of(name), place, [*[None] * dim, chosen])


def expand_dimension(drawing: Drawing, name: str) -> list[Place]:
    """A single row repeated along the dimension of another value."""
    place = drawing.value()
    shape = drawing.shape(place)
    row = drawing.parameter(shape[-1])
    if "_as" in name:
        return drawing.call(target_of(name), row, place)
    (row,) = drawing.call(aten.mul.Tensor, row, drawing.call(aten.mean.dim, place, list(range(1, len(shape))), True)[0])
    return drawing.call(target_of(name), row, [-1, *shape[1:]])


def repeat(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2, 3)
    dim = drawing.dimension(place)
    if name.startswith("repeat_interleave"):
        return drawing.call(target_of(name), place, 2, dim)
    times = [1] * len(drawing.shape(place))
    times[dim] = 2
    return drawing.call(target_of(name), place, times)


def factory(drawing: Drawing, name: str) -> list[Place]:
    """A constant as large as one sample, added to a value."""
    place = drawing.value()
    size = list(drawing.shape(place)[1:])
    value = (0.5,) if "full" in name else ()
    source = (place,) if name.startswith("new_") else ()
    (made,) = drawing.call(target_of(name), *source, size, *value)
    return drawing.call(aten.add.Tensor, place, made)


def fixed(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    size = drawing.shape(place)[-1]
    given: dict[str, tuple[Any, ...]] = {
        "arange.default": (size,),
        "arange.start": (1, size + 1),
        "arange.start_step": (0, 2 * size, 2),
        "scalar_tensor.default": (0.5,),
        "linspace.default": (0.0, 1.0, size),
        "eye.default": (size,),
        "eye.m": (size, size),
    }
    (made,) = drawing.call(target_of(name), *given[name])
    return drawing.call(aten.matmul.default if name.startswith("eye") else aten.mul.Tensor, place, made)


def of_image(drawing: Drawing, name: str) -> list[Place]:
    """Pixel and channel shuffles."""
    return drawing.call(target_of(name), drawing.value(4), 2)


def pad(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    amounts = [0, 0] * (len(drawing.shape(place)) - 1 - dim) + drawing.pick([[1, 0], [1, 2], [0, 1]])
    return drawing.call(target_of(name), place, amounts, "constant", drawing.pick([0.0, 0.0, 1.0]))


def grid(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    sizes = drawing.shape(place)[-2:]
    indexing = {"indexing": "ij"} if name.endswith("indexing") else {}
    first, second = drawing.call(target_of(name), [drawing.parameter(size) for size in sizes], **indexing)
    (product,) = drawing.call(aten.mul.Tensor, first, second)
    return drawing.call(aten.add.Tensor, place, product)


def diagonal(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4), 0, -2, -1)


def chosen(drawing: Drawing, place: Place, dim: int) -> Place:
    """The first two places along a dimension, for the first sample."""
    shape = [1] * len(drawing.shape(place))
    shape[dim] = min(2, drawing.shape(place)[dim])
    return drawing.buffer(torch.arange(shape[dim]).reshape(shape))


def gathering(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    places = chosen(drawing, place, dim)
    if name == "take_along_dim.default":
        return drawing.call(target_of(name), place, places, dim)
    source: tuple[Any, ...] = ()
    if "scatter" in name:
        source = (2.0,) if ".value" in name else (drawing.parameter(*drawing.shape(places)),)
    if name.endswith(".two"):
        source = (*source, "amax")
    named = {"reduce": "multiply"} if name.endswith(("reduce", "_reduce")) else {}
    return drawing.call(target_of(name), place, dim, places, *source, **named)


def index_add(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    places = drawing.buffer(torch.arange(0, drawing.shape(place)[dim], 2))
    (source,) = drawing.call(aten.index_select.default, place, dim, places)
    how = ["amax"] if name.startswith("index_reduce") else []
    return drawing.call(target_of(name), place, dim, places, source, *how)


def index_fill(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    places = drawing.buffer(torch.arange(0, drawing.shape(place)[dim], 2))
    value = 2.0 if name.endswith("Scalar") else drawing.call(aten.scalar_tensor.default, 2.0)[0]
    return drawing.call(target_of(name), place, dim, places, value)


def unpool(drawing: Drawing, name: str) -> list[Place]:
    if name == "max_unpool3d.default":
        place = drawing.value(5)
        made, places = drawing.call(aten.max_pool3d_with_indices.default, place, [2, 2, 2])
        return drawing.call(target_of(name), made, places, list(drawing.shape(place)[2:]), [2, 2, 2], [0, 0, 0])
    place = drawing.value(4)
    made, places = drawing.call(aten.max_pool2d_with_indices.default, place, [2, 2])
    return drawing.call(target_of(name), made, places, list(drawing.shape(place)[2:]))


def index_put(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    places = drawing.buffer(torch.arange(0, drawing.shape(place)[dim], 2))
    return drawing.call(target_of(name), place, [*[None] * dim, places], drawing.parameter(1))


def scatter_part(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    dim = drawing.dimension(place)
    where = (dim, 0) if name.startswith("select") else (dim, 0, 1)
    taken = aten.select.int if name.startswith("select") else aten.slice.Tensor
    (part,) = drawing.call(taken, drawing.positive(place), *where)
    return drawing.call(target_of(name), place, part, *where)


def columns(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(4)
    geometry = ([2, 2], [1, 1], [0, 0], [1, 1])
    made = drawing.call(aten.im2col.default, place, *geometry)
    if name == "im2col.default":
        return made
    return drawing.call(target_of(name), made[0], list(drawing.shape(place)[2:]), *geometry)


def unfold(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2, 3, 4)
    return drawing.call(target_of(name), place, drawing.dimension(place), 2, 1)


def grid_sample(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(5 if "3d" in name else 4)
    rank = len(drawing.shape(place))
    (middle,) = drawing.call(aten.mean.dim, place, list(range(1, rank)), True)
    (where,) = drawing.call(aten.add.Tensor, middle, drawing.parameter(*[2] * (rank - 2), rank - 2))
    return drawing.call(target_of(name), place, where, 0, 0, False)
