"""What the operators of each channel rule are given when networks are drawn at random."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.engine.graph.drawing import Drawing, Family, Place, Unfit, target_of
from worker.engine.graph.ops import (
    cells,
    convolve,
    dimensions,
    elementwise,
    expand,
    matmul,
    normalise,
    plain,
    reduce,
    reshape,
    select,
    windows,
)
from worker.engine.graph.ops import gathering as gathering_rules
from worker.engine.graph.ops.table import OPS

aten = torch.ops.aten

_BOOLEAN = re.compile(r"__(and|or|xor)__|bitwise_|logical_")
_WITHIN_ONE = ("acos", "asin", "atanh", "logit")
_PLAIN: dict[str, Any] = {"number": 0.5, "float": 0.5, "bool": False, "str": "floor", "Device": torch.device("cpu")}


def by_schema(drawing: Drawing, name: str) -> list[Place]:
    """Tensors that can be broadcast to the first one, truths where these are wanted, a plain value of its type else."""
    schema = target_of(name)._schema
    first = drawing.positive(drawing.value())
    packet = name.split(".")[0]
    if packet in _WITHIN_ONE:
        (first,) = drawing.call(aten.mul.Scalar, first, 0.6)
    if packet in ("_conj", "imag"):
        (first,) = drawing.call(aten.complex.default, first, first)
    if packet == "acosh":
        (first,) = drawing.call(aten.add.Scalar, first, 1.0)
    args: list[Any] = []
    kwargs: dict[str, Any] = {"min": 0.7} if name in ("clamp.default", "clamp_.default") else {}
    for argument in schema.arguments:
        kind = str(argument.type)
        if argument.name in kwargs:
            continue
        if kind == "Tensor" or (kind == "Optional[Tensor]" and name.startswith("clamp")):
            value: Any = first if not args else companion(drawing, first)
            if _BOOLEAN.match(name) or argument.name in ("mask", "condition"):
                (value,) = drawing.call(aten.gt.Scalar, value, 1.0)
            if name.startswith("masked_fill") and argument.name == "value":
                (value,) = drawing.call(aten.scalar_tensor.default, 2.0)
        elif argument.has_default_value():
            continue
        elif argument.name == "dtype":
            value = torch.float32
        else:
            value = True if _BOOLEAN.match(name) else _PLAIN.get(kind, 2 if kind == "int" else None)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return drawing.call(target_of(name), *args, **kwargs)


def companion(drawing: Drawing, first: Place) -> Place:
    """Something that is broadcast to `first`: itself, another value, a parameter along one of its dimensions."""
    shape = drawing.shape(first)
    same = [place for place in drawing.pool if drawing.shape(place) == shape]
    if same and drawing.pick("01") == "1":
        return drawing.positive(drawing.pick(same))
    dim = drawing.dimension(first)
    return drawing.parameter(shape[dim], *[1] * (len(shape) - dim - 1))


def reduction(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    dims = {"int": dim, "List[int]": [dim]}
    given: dict[str, Any] = {"p": 2} if name.startswith("norm.") else {}
    for argument in target_of(name)._schema.arguments:
        if argument.name == "dim":
            given["dim"] = dims["int" if str(argument.real_type) == "int" else "List[int]"]
        if argument.name == "keepdim":
            given["keepdim"] = drawing.pick([True, False])
    return drawing.call(target_of(name), place, **given)


def pooling(spatial: int, drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(spatial + 2)
    if "upsample" in name:
        aligned = () if "nearest" in name else (False,)
        return drawing.call(target_of(name), place, None, *aligned, [2.0] * spatial)
    if "_pad" in name:
        return drawing.call(target_of(name), place, [1] * (2 * spatial))
    return drawing.call(target_of(name), place, [2] * spatial)[:1]


def over_dimension(drawing: Drawing, name: str) -> list[Place]:
    """Operators that take the dimension they work along, and perhaps one more number."""
    place = drawing.positive(drawing.value())
    dim = drawing.dimension(place)
    packet = name.split(".")[0]
    if OPS[name].channels is reduce.position:  # where values are equal, rounding decides on the position
        shape = drawing.shape(place)
        (place,) = drawing.call(aten.add.Tensor, place, drawing.parameter(shape[dim], *[1] * (len(shape) - dim - 1)))
    if packet == "flip":
        return drawing.call(target_of(name), place, [dim])
    if packet == "roll":
        return drawing.call(target_of(name), place, [1], [dim])
    if packet == "topk":
        return drawing.call(target_of(name), place, 2, dim)[:1]
    if packet in ("_softmax", "_log_softmax"):
        return drawing.call(target_of(name), place, dim, False)
    if name.endswith(".stable"):
        return drawing.call(target_of(name), place, stable=True, dim=dim)[:1]
    return drawing.call(target_of(name), place, dim=dim)[:1]


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


def glu(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    return drawing.call(target_of(name), place, drawing.dimension(place))


def of_image(drawing: Drawing, name: str) -> list[Place]:
    """Pixel and channel shuffles."""
    return drawing.call(target_of(name), drawing.value(4), 2)


def triangle(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4))


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


def pad(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    dim = drawing.dimension(place)
    amounts = [0, 0] * (len(drawing.shape(place)) - 1 - dim) + drawing.pick([[1, 0], [1, 2], [0, 1]])
    return drawing.call(target_of(name), place, amounts, "constant", drawing.pick([0.0, 0.0, 1.0]))


def distances(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    rows = drawing.parameter(3, drawing.shape(place)[-1])
    rest = (2.0, None) if name.startswith("_") else ()
    return drawing.call(target_of(name), place, rows, *rest)


def bilinear(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(2)
    size = drawing.shape(place)[-1]
    return drawing.call(target_of(name), place, place, drawing.parameter(4, size, size), None)


def several(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    return drawing.call(target_of(name), [place, companion(drawing, place)])


def grid(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    sizes = drawing.shape(place)[-2:]
    indexing = {"indexing": "ij"} if name.endswith("indexing") else {}
    first, second = drawing.call(target_of(name), [drawing.parameter(size) for size in sizes], **indexing)
    (product,) = drawing.call(aten.mul.Tensor, first, second)
    return drawing.call(aten.add.Tensor, place, product)


def similarity(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    (other,) = drawing.call(aten.mul.Tensor, place, companion(drawing, place))
    return drawing.call(target_of(name), place, other, drawing.dimension(place))


def diagonal(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4), 0, -2, -1)


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


def spectrum(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4))


def complex_pairs(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    size = drawing.shape(place)[-1]
    (pairs,) = drawing.call(aten.unflatten.int, place, len(drawing.shape(place)) - 1, [size // 2, 2])
    (made,) = drawing.call(aten.view_as_complex.default, drawing.call(aten.contiguous.default, pairs)[0])
    return [made] if name == "view_as_complex.default" else drawing.call(target_of(name), made)


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
        source = (2.0,) if name.endswith("value") else (drawing.parameter(*drawing.shape(places)),)
    return drawing.call(target_of(name), place, dim, places, *source)


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


OF_RULE: dict[Callable[..., Any], Family] = {
    cells.cell: cell,
    convolve.convolution: convolution,
    dimensions.diagonal: diagonal,
    dimensions.move_dims: move_dims,
    dimensions.squeeze: squeeze,
    dimensions.unsqueeze: unsqueeze,
    elementwise.arithmetic: by_schema,
    elementwise.elementwise: by_schema,
    elementwise.same_as_input: by_schema,
    expand.expand: expand_dimension,
    expand.expand_as: expand_dimension,
    expand.factory: factory,
    expand.fixed: fixed,
    expand.repeat: repeat,
    expand.repeat_interleave: repeat,
    gathering_rules.gather: gathering,
    gathering_rules.index_put: index_put,
    gathering_rules.scatter: gathering,
    gathering_rules.select_scatter: scatter_part,
    gathering_rules.slice_scatter: scatter_part,
    gathering_rules.take_along: gathering,
    matmul.addmm: product,
    matmul.attention: attention,
    matmul.bilinear: bilinear,
    matmul.cosine_similarity: similarity,
    matmul.distances: distances,
    matmul.einsum: einsum,
    matmul.linear: linear,
    matmul.matmul: product,
    matmul.outer: outer,
    matmul.tensordot: tensordot,
    matmul.vector_product: vector_product,
    normalise.group_norm: group_norm,
    normalise.last_dims: last_dims,
    normalise.per_channel: per_channel,
    normalise.weight_norm: weight_norm,
    plain.broadcast_tensors: several,
    reduce.pool1d: partial(pooling, 1),
    reduce.pool2d: partial(pooling, 2),
    reduce.pool3d: partial(pooling, 3),
    reduce.position: over_dimension,
    reduce.reduction: reduction,
    reshape.channel_shuffle: of_image,
    reshape.flatten: flatten,
    reshape.pixel_shuffle: of_image,
    reshape.pixel_unshuffle: of_image,
    reshape.unflatten: unflatten,
    reshape.view: view,
    reshape.view_as: view_as,
    select.along: over_dimension,
    select.cat: cat,
    select.embedding: embedding,
    select.flip: over_dimension,
    select.glu: glu,
    select.index: index,
    select.index_select: index,
    select.narrow: narrow,
    select.pad: pad,
    select.roll: over_dimension,
    select.select: select_one,
    select.slice_: slice_,
    select.split: split,
    select.stack: stack,
    select.triangle: triangle,
    select.unbind: select_one,
    select.whole: over_dimension,
    windows.columns_to_image: columns,
    windows.complex_from_pairs: complex_pairs,
    windows.grid_sample: grid_sample,
    windows.image_to_columns: columns,
    windows.pairs_from_complex: complex_pairs,
    windows.several_fixed: grid,
    windows.spectrum: spectrum,
    windows.unfold: unfold,
}

_TABLES = "makes a table of positions from numbers alone; what it is made of stays whole"
NOT_DRAWN: dict[str, str] = {
    "affine_grid_generator.default": "is given the sizes of a batch; what it is made of stays whole",
    "alpha_dropout.default": "is told whether it trains and does nothing when it does not",
    "bucketize.Tensor": _TABLES,
    "one_hot.default": _TABLES,
    "searchsorted.Tensor": _TABLES,
    "stft.center": "wants a signal far longer than the networks here have",
    "stft.default": "wants a signal far longer than the networks here have",
    "tril_indices.default": _TABLES,
    "triu_indices.default": _TABLES,
}
"""Operators with a channel rule that no network here has, and why not."""

FAMILIES: dict[str, Family] = {
    name: OF_RULE[row.channels]
    for name, row in OPS.items()
    if row.channels is not None and row.channels in OF_RULE and name not in NOT_DRAWN
}
