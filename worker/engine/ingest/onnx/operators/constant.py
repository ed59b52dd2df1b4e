"""Operators that make values from nothing or from sizes: they are folded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.engine.ingest.onnx.builder import MAXIMUM_CONSTANT_BYTES
from worker.engine.ingest.onnx.known import BATCHES, Known, dtype_of, shapes_of
from worker.engine.ingest.onnx.site import Site


def constant(site: Site) -> Known:
    given = [name for name in ("value", "value_float", "value_floats", "value_int", "value_ints") if site.given(name)]
    if len(given) != 1:
        raise site.refuse("it does not have exactly one value of a kind that is read")
    kind = given[0]
    value: Tensor | None
    if kind == "value":
        value = site.maybe_tensor("value")
        assert value is not None
    elif kind.startswith("value_float"):
        value = torch.tensor(site.real(kind) if kind == "value_float" else site.maybe_reals(kind), dtype=torch.float32)
    else:
        value = torch.tensor(
            site.integer(kind) if kind == "value_int" else site.maybe_integers(kind), dtype=torch.int64
        )
    return Known((value,) * len(BATCHES), site.results[0])


def shape(site: Site) -> Known:
    start, end = site.maybe_integer("start") or 0, site.maybe_integer("end")
    return site.compute([torch.tensor(sizes[slice(start, end)]) for sizes in _integers(site)])


def size(site: Site) -> Known:
    return site.compute([torch.tensor(math.prod(sizes)) for sizes in _integers(site)])


def _integers(site: Site) -> tuple[tuple[int, ...], ...]:
    return shapes_of(site.operand(0))


def constant_of_shape(site: Site) -> Known:
    fill = site.maybe_tensor("value")
    fill = torch.zeros(1) if fill is None else fill
    if fill.numel() != 1:
        raise site.refuse("`value` is not one number")
    sizes = [[int(number) for number in value.tolist()] for value in site.known(0).values]
    for each in sizes:
        _check_size(site, math.prod(each), fill.element_size())
    return site.compute([fill.reshape([1] * len(each)).expand(each).clone() for each in sizes])


def range_(site: Site) -> Known:
    bounds = [site.known(place).values for place in range(3)]
    made = []
    for start, limit, delta in zip(*bounds, strict=True):
        if int(delta.numel()) != 1 or delta.item() == 0:
            raise site.refuse("`delta` is zero")
        _check_size(site, abs((limit.item() - start.item()) / delta.item()), start.element_size())
        count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
        made.append(start + torch.arange(count).to(start.dtype) * delta)
    return site.compute(made)


def non_zero(site: Site) -> Known:
    return site.compute([value.nonzero().t().contiguous() for value in site.known(0).values])


def eye_like(site: Site) -> Known:

    operand, diagonal = site.operand(0), site.integer("k")
    dtype = site.element_type("dtype") if site.given("dtype") else dtype_of(operand)
    made = []
    for rows, columns in shapes_of(operand):
        _check_size(site, rows * columns, 8)
        made.append(torch.ones(rows, columns, dtype=dtype).triu(diagonal).tril(diagonal))
    return site.compute(made)


def _check_size(site: Site, count: float, element_bytes: int) -> None:
    if not 0 <= count * element_bytes <= MAXIMUM_CONSTANT_BYTES:
        raise site.refuse("it makes a constant of no sensible size")
