"""Normalizations."""

from __future__ import annotations

import torch
from torch import fx

from worker.engine.ingest.onnx.known import Known, Operand, shape_of
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten


def batch_norm(site: Site) -> Operand:
    """ONNX's momentum is the share of the old statistics, torch's that of the new ones."""
    site.must_be("training_mode", 0)
    site.must_be("spatial", 1)
    value = site.operand(0)
    weight, bias = (site.parameter(site.known(place), leaf) for place, leaf in ((1, "weight"), (2, "bias")))
    mean, variance = site.statistic(3, "running_mean"), site.statistic(4, "running_var")
    momentum = round(1 - site.real("momentum"), 6)
    return site.emit(
        _A.batch_norm.default, value, weight, bias, mean, variance, False, momentum, site.real("epsilon"), False
    )


def layer_norm(site: Site) -> Operand:
    site.maybe_integer("stash_type")
    value, weight, bias = site.operand(0), site.operand(1), site.optional(2)
    sizes = site.fixed_sizes(value, site.axis(site.integer("axis"), site.rank(value)))
    full = list(shape_of(weight)) == sizes and (bias is None or list(shape_of(bias)) == sizes)
    if full:
        own = site.parameter(weight, "weight")
        added = None if bias is None else site.parameter(bias, "bias")
        return site.emit(_A.layer_norm.default, value, sizes, own, added, site.real("epsilon"))
    result = site.emit(_A.layer_norm.default, value, sizes, None, None, site.real("epsilon"))
    result = site.emit(_A.mul.Tensor, result, weight)
    return result if bias is None else site.emit(_A.add.Tensor, result, bias)


def rms_norm(site: Site) -> Operand:
    site.maybe_integer("stash_type")
    value, weight = site.operand(0), site.operand(1)
    sizes = site.fixed_sizes(value, site.axis(site.integer("axis"), site.rank(value)))
    if list(shape_of(weight)) != sizes:
        raise site.refuse("its scale is not as large as what it normalizes")
    return site.emit(_A.rms_norm.default, value, sizes, site.parameter(weight, "weight"), site.real("epsilon"))


def group_norm(site: Site) -> Operand:
    """One scale a group before opset 21, one a channel since."""
    site.maybe_integer("stash_type")
    value, groups = site.operand(0), site.integer("num_groups")
    channels = shape_of(value)[1]
    if groups < 1 or channels % groups:
        raise site.refuse(f"{channels} channels do not make {groups} groups")
    weights = []
    for place, leaf in ((1, "weight"), (2, "bias")):
        each = site.known(place)
        if site.opset < 21 and groups != channels:
            each = each.form("repeated", lambda tensor: tensor.repeat_interleave(channels // groups))
        weights.append(site.parameter(each, leaf))
    return site.emit(_A.group_norm.default, value, groups, *weights, site.real("epsilon"), False)


def instance_norm(site: Site) -> Operand:
    """A scale of ones and a shift of zeros say that it has none; it may then be part of a group normalization."""
    value, scale, shift = site.operand(0), site.operand(1), site.operand(2)
    weights: list[fx.Node | None] = [None, None]
    if not (_is_all(scale, 1) and _is_all(shift, 0)):
        weights = [site.parameter(scale, "weight"), site.parameter(shift, "bias")]
    return site.emit(_A.instance_norm.default, value, *weights, None, None, True, 0.1, site.real("epsilon"), False)


def _is_all(operand: Operand, number: float) -> bool:
    return isinstance(operand, Known) and all(bool((value == number).all()) for value in operand.values)


def vector_norm(site: Site) -> Operand:
    """`LpNormalization`: divided by the norm along one axis."""
    value, power = site.operand(0), site.integer("p")
    axis = site.axis(site.integer("axis"), site.rank(value))
    length = site.emit(_A.linalg_vector_norm.default, value, power, [axis], True)
    return site.emit(_A.div.Tensor, value, length)


def mean_variance_norm(site: Site) -> Operand:
    value = site.operand(0)
    axes = site.maybe_integers("axes") or [0, 2, 3]
    if 0 in axes:
        raise site.refuse("it normalizes over the batch")
    centred = site.emit(_A.sub.Tensor, value, site.emit(_A.mean.dim, value, axes, True))
    variance = site.emit(_A.mean.dim, site.emit(_A.square.default, centred), axes, True)
    below = site.emit(_A.add.Tensor, site.emit(_A.sqrt.default, variance), 1e-9)
    return site.emit(_A.div.Tensor, centred, below)


def local_response_norm(site: Site) -> Operand:
    """Divided by (bias + alpha / size * the sum of squares of the channels around) ** beta."""
    value, size = site.operand(0), site.integer("size")
    channels = shape_of(value)[1]
    squares = site.emit(_A.square.default, value)
    padded = site.emit(
        _A.pad.default,
        squares,
        [*[0] * (2 * (site.rank(value) - 2)), (size - 1) // 2, size // 2],
        "constant",
        0.0,
    )
    if not 1 <= size <= 64:
        raise site.refuse(f"it reaches over {size} channels")
    total: Operand | None = None
    for start in range(size):
        part = site.emit(_A.slice.Tensor, padded, 1, start, start + channels)
        total = part if total is None else site.emit(_A.add.Tensor, total, part)
    scaled = site.emit(_A.mul.Tensor, total, site.real("alpha") / size)
    below = site.emit(_A.pow.Tensor_Scalar, site.emit(_A.add.Tensor, scaled, site.real("bias")), site.real("beta"))
    return site.emit(_A.div.Tensor, value, below)
