"""Arguments of operators that work on values: by position, along a dimension, over several."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.engine.graph.drawing import Drawing, Place, target_of
from worker.engine.graph.ops import reduce
from worker.engine.graph.ops.table import OPS

aten = torch.ops.aten

_BOOLEAN = re.compile(r"__i?(and|or|xor)__|bitwise_|logical_")
_WHOLE = re.compile(r"bitwise_(left|right)_shift")
_WITHIN_ONE = ("acos", "asin", "atanh", "erfinv", "logit", "special_ndtri")
_PLAIN: dict[str, Any] = {"number": 0.5, "float": 0.5, "bool": False, "str": "floor", "Device": torch.device("cpu")}


def by_schema(drawing: Drawing, name: str) -> list[Place]:
    """Tensors that can be broadcast to the first one, truths where these are wanted, a plain value of its type else."""
    schema = target_of(name)._schema
    first = drawing.positive(drawing.value())
    packet = name.split(".")[0].removesuffix("_")
    if packet in _WITHIN_ONE:
        (first,) = drawing.call(aten.mul.Scalar, first, 0.6)
    if packet in ("_conj", "imag"):
        (first,) = drawing.call(aten.complex.default, first, first)
    if packet == "acosh":
        (first,) = drawing.call(aten.add.Scalar, first, 1.0)
    if name.startswith("float_power_"):  # which writes numbers of double precision
        (first,) = drawing.call(aten.to.dtype, first, torch.float64)
    args: list[Any] = []
    kwargs: dict[str, Any] = {"min": 0.7} if name in ("clamp.default", "clamp_.default") else {}
    for argument in schema.arguments:
        kind = str(argument.type)
        if argument.name in kwargs:
            continue
        if kind == "Tensor" or (kind == "Optional[Tensor]" and name.startswith("clamp")):
            value: Any = first if not args else companion(drawing, first)
            if _WHOLE.match(name):
                (value,) = drawing.call(aten.to.dtype, value, torch.int64)
            elif _BOOLEAN.match(name) or argument.name in ("mask", "condition"):
                (value,) = drawing.call(aten.gt.Scalar, value, 1.0)
            if name.startswith(("masked_fill", "fill")) and argument.name == "value":
                (value,) = drawing.call(aten.scalar_tensor.default, 2.0)
        elif argument.has_default_value():
            continue
        elif argument.name == "dtype":
            value = torch.float32
        else:
            plain = _PLAIN.get(kind, 2 if kind == "int" else None)
            value = 2 if _WHOLE.match(name) else True if _BOOLEAN.match(name) else plain
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
    if "upsample" in name and name.endswith(".default"):
        return drawing.call(target_of(name), place, [6] * spatial, *([] if "nearest" in name else [False]))
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
    if packet in ("topk", "kthvalue"):
        return drawing.call(target_of(name), place, 2, dim)[:1]
    if packet in ("_softmax", "_log_softmax"):
        return drawing.call(target_of(name), place, dim, False)
    if name.endswith(".stable"):
        return drawing.call(target_of(name), place, stable=True, dim=dim)[:1]
    return drawing.call(target_of(name), place, dim=dim)[:1]


def glu(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    return drawing.call(target_of(name), place, drawing.dimension(place))


def triangle(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4))


def distances(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    rows = drawing.parameter(3, drawing.shape(place)[-1])
    rest = (2.0, None) if name.startswith("_") else ()
    return drawing.call(target_of(name), place, rows, *rest)


def several(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    return drawing.call(target_of(name), [place, companion(drawing, place)])


def similarity(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value(3, 4)
    (other,) = drawing.call(aten.mul.Tensor, place, companion(drawing, place))
    return drawing.call(target_of(name), place, other, drawing.dimension(place))


def spectrum(drawing: Drawing, name: str) -> list[Place]:
    return drawing.call(target_of(name), drawing.value(3, 4))


def complex_pairs(drawing: Drawing, name: str) -> list[Place]:
    place = drawing.value()
    size = drawing.shape(place)[-1]
    (pairs,) = drawing.call(aten.unflatten.int, place, len(drawing.shape(place)) - 1, [size // 2, 2])
    (made,) = drawing.call(aten.view_as_complex.default, drawing.call(aten.contiguous.default, pairs)[0])
    return [made] if name == "view_as_complex.default" else drawing.call(target_of(name), made)
