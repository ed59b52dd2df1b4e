"""Batch, layer, RMS, group and instance normalization with parameters."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter, given, hold

_BATCH: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE: dict[int, type[nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d]] = {
    3: nn.InstanceNorm1d,
    4: nn.InstanceNorm2d,
    5: nn.InstanceNorm3d,
}


def lift_batch_norm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """Statistics, their momentum and the count of batches are the original's, so training updates them the same way."""
    weight, bias = lifter.parameter(arguments["weight"], 1), lifter.parameter(arguments["bias"], 1)
    mean, variance = lifter.tensor(arguments["running_mean"]), lifter.tensor(arguments["running_var"])
    found = given(arguments["weight"], weight) and given(arguments["bias"], bias)
    found = found and given(arguments["running_mean"], mean) and given(arguments["running_var"], variance)
    rank = len(node.meta["shape"])
    if not found or (weight is None) != (bias is None) or (mean is None) != (variance is None) or rank not in _BATCH:
        return False
    if weight is None and mean is None:
        return False
    named_after: fx.Node = arguments["weight" if weight is not None else "running_mean"]
    features = (weight if weight is not None else _present(mean)).shape[0]
    # An export in eval mode writes 0 for a momentum of None, the cumulative average.
    momentum = arguments["momentum"] or None

    def make() -> nn.Module:
        module = _BATCH[rank](features, arguments["eps"], momentum, weight is not None, mean is not None, device="meta")
        hold(module, weight=weight, bias=bias)
        if mean is not None:
            count = lifter.sibling(arguments["running_mean"], "num_batches_tracked")
            module.running_mean, module.running_var = mean, variance
            module.num_batches_tracked = count if count is not None else torch.tensor(0)
        return module

    configuration = (_BATCH[rank], arguments["eps"], momentum)
    parameters = (weight, bias, mean, variance)
    lifter.replace(node, lifter.module(node, named_after, parameters, configuration, make), arguments["input"])
    return True


def lift_instance_norm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """Only without running statistics, the default of `nn.InstanceNorm`."""
    weight, bias = lifter.parameter(arguments["weight"], 1), lifter.parameter(arguments["bias"], 1)
    rank = len(node.meta["shape"])
    if weight is None or bias is None or arguments["running_mean"] is not None or rank not in _INSTANCE:
        return False

    def make() -> nn.Module:
        module = _INSTANCE[rank](weight.shape[0], arguments["eps"], affine=True, device="meta")
        return hold(module, weight=weight, bias=bias)

    configuration = (_INSTANCE[rank], arguments["eps"])
    name = lifter.module(node, arguments["weight"], (weight, bias), configuration, make)
    lifter.replace(node, name, arguments["input"])
    return True


def lift_layer_norm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight, bias = lifter.parameter(arguments["weight"]), lifter.parameter(arguments["bias"])
    shape = tuple(arguments["normalized_shape"])
    if weight is None or not given(arguments["bias"], bias) or tuple(weight.shape) != shape:
        return False

    def make() -> nn.Module:
        module = nn.LayerNorm(shape, arguments["eps"], bias=bias is not None, device="meta")
        return hold(module, weight=weight, bias=bias)

    name = lifter.module(node, arguments["weight"], (weight, bias), (nn.LayerNorm, arguments["eps"]), make)
    lifter.replace(node, name, arguments["input"])
    return True


def lift_rms_norm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight = lifter.parameter(arguments["weight"])
    shape = tuple(arguments["normalized_shape"])
    if weight is None or tuple(weight.shape) != shape:
        return False

    def make() -> nn.Module:
        return hold(nn.RMSNorm(shape, arguments["eps"], device="meta"), weight=weight)

    name = lifter.module(node, arguments["weight"], (weight,), (nn.RMSNorm, arguments["eps"]), make)
    lifter.replace(node, name, arguments["input"])
    return True


def lift_group_norm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight, bias = lifter.parameter(arguments["weight"], 1), lifter.parameter(arguments["bias"], 1)
    if weight is None or bias is None:
        return False
    groups: int = arguments["num_groups"]

    def make() -> nn.Module:
        module = nn.GroupNorm(groups, weight.shape[0], arguments["eps"], device="meta")
        return hold(module, weight=weight, bias=bias)

    name = lifter.module(node, arguments["weight"], (weight, bias), (nn.GroupNorm, groups, arguments["eps"]), make)
    lifter.replace(node, name, arguments["input"])
    return True


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
