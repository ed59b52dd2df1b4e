"""BatchNorm over the whole of a batch that several processes divide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from worker.engine.team import Team

BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def synchronised(network: nn.Module, team: Team) -> Iterator[None]:
    """Inside the block the BatchNorm layers of `network` normalise by the statistics of all parts of a batch, and learn
    those: what one process would have found on the whole of it (up to rounding)."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)] if team.size > 1 else []
    for layer in layers:
        layer.forward = partial(_forward, layer, team)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: BatchNorm, team: Team, value: Tensor) -> Tensor:
    by_batch = layer.training or layer.running_mean is None
    if not (team.divides and by_batch):
        result: Tensor = type(layer).forward(layer, value)
        return result
    assert team.part is not None
    layer._check_input_dim(value)  # type: ignore[no-untyped-call]
    dims = [0, *range(2, value.dim())]
    shape = [1, -1, *[1] * (value.dim() - 2)]
    own = value.numel() // value.shape[1]
    count = own * team.part.whole // (team.part.stop - team.part.start)
    exact = value.float()
    mean = team.total(exact.sum(dims)) / count
    centred = exact - mean.view(shape)
    variance = team.total(centred.square().sum(dims)) / count
    if layer.training:
        _learn(layer, mean.detach(), variance.detach() * (count / max(1, count - 1)))
    normal = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normal = normal * layer.weight.view(shape) + layer.bias.view(shape)
    return normal.to(value.dtype)


def _learn(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does; `variance` is that of the samples, without bias."""
    if layer.running_mean is None or layer.running_var is None:
        return
    with torch.no_grad():
        momentum = layer.momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(layer.num_batches_tracked)
        for kept, new in ((layer.running_mean, mean), (layer.running_var, variance)):
            kept.mul_(1.0 - (momentum or 0.0)).add_(new, alpha=momentum or 0.0)
