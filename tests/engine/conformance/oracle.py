"""A second judge of a cut, which knows nothing of graphs, labels or rules.

The network as its author wrote it runs with the removed slices of its own parameters set to zero, and with its
normalisations over channels reduced to those that stay. The cut network must give the same. All that both sides share
is the list of what was removed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.graph.channels import Channels
from worker.engine.graph.cut import Cut

Kept = Mapping[str, dict[int, Tensor]]
"""For a parameter of the original, by dimension: the positions that stay."""

_PER_CHANNEL = (nn.modules.batchnorm._NormBase, nn.modules.instancenorm._InstanceNorm)


def masked_original(module: nn.Module, kept: Kept, scaled_alone: Collection[str] = ()) -> nn.Module:
    """A copy of `module` without what is not kept: zeros in parameters and buffers, smaller normalisations; but parts
    called as in `scaled_alone` still read everything, and only scale less of it."""
    masked = copy.deepcopy(module).eval()
    tensors = {**dict(masked.named_parameters(remove_duplicate=False)), **dict(masked.named_buffers())}
    with torch.no_grad():
        for name, dims in kept.items():
            for dim, positions in dims.items():
                lost = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                lost[positions] = False
                tensors[name].index_fill_(dim, lost.nonzero().squeeze(1), 0)
    for name, part in masked.named_modules():
        outputs = kept.get(f"{name}.weight", {}).get(0)
        if name.rpartition(".")[2] in scaled_alone:
            continue
        if outputs is not None and _is_norm(part):
            _reduce(part, outputs)
        elif isinstance(part, nn.LayerNorm) and part.weight is None:
            _ignore_zeros(part)
        inputs = kept.get(f"{name}.weight", {}).get(1)
        if inputs is not None and "Std" in type(part).__name__:
            _narrow(part, inputs)
    return masked


@contextmanager
def every_part_called() -> Iterator[None]:
    """Inside the block no layer of torch's reads the weights of its parts without calling them, as transformers do."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def kept_in_original(module: nn.Module, channels: Channels, plan: Cut, renames: Mapping[str, str]) -> Kept:
    """What `plan`, not yet carried out, keeps in the original. A matrix that became a layer's turned is turned back."""
    lifted: dict[str, Tensor] = dict(channels.graph.named_parameters(remove_duplicate=False))
    lifted |= dict(channels.graph.named_buffers())
    kept: dict[str, dict[int, Tensor]] = {}
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        target = renames.get(name, name)
        axes = channels.parameters.get(target)
        if axes is None:
            continue
        found = {dim: plan.kept(axis) for dim, axis in enumerate(axes)}
        turned = tensor.dim() == 2 and not torch.equal(tensor, lifted[target])
        kept[name] = {1 - dim if turned else dim: stays for dim, stays in found.items() if stays is not None}
    return kept


def _is_norm(part: nn.Module) -> bool:
    """A normalisation over channels, by what it is called: own ones have the name and a vector of weights."""
    weight = getattr(part, "weight", None)
    vector = isinstance(weight, nn.Parameter) and weight.dim() == 1
    return vector and "Norm" in type(part).__name__ and not isinstance(part, _PER_CHANNEL)


def _reduce(part: Any, positions: Tensor) -> None:
    """Let a normalisation work on the positions that stay, and put zeros at the others."""
    channels, dims = part.weight.numel(), _dims(part)
    for name, parameter in list(part.named_parameters(recurse=False)):
        setattr(part, name, nn.Parameter(parameter.detach()[positions]))
    if hasattr(part, "normalized_shape"):
        part.normalized_shape = (len(positions),)
    if hasattr(part, "num_channels"):
        if part.num_groups == part.num_channels:
            part.num_groups = len(positions)
        part.num_channels = len(positions)
    inner: Callable[..., Tensor] = part.forward

    def forward(x: Tensor, *more: Any) -> Tensor:
        dim = next(dim for dim in dims if x.shape[dim] == channels)
        result = inner(x.index_select(dim, positions), *more)
        return torch.zeros_like(x, dtype=result.dtype).index_copy(dim, positions, result)

    part.forward = forward


def _dims(part: nn.Module) -> tuple[int, ...]:
    """Where the channels are, the likeliest first."""
    if isinstance(dim := getattr(part, "channel_dim", None), int):
        return (dim,)
    first = isinstance(part, nn.GroupNorm) or type(part).__name__.endswith("2d")
    return (1, -1) if first else (-1, 1)


def _ignore_zeros(part: nn.LayerNorm) -> None:
    """A normalisation without weights says nothing of its channels: those that are zero everywhere are gone."""

    def forward(x: Tensor) -> Tensor:
        there = x.abs().flatten(0, -2).amax(0).nonzero().squeeze(1)
        result = nn.functional.layer_norm(x.index_select(-1, there), (len(there),), eps=part.eps)
        return torch.zeros_like(x).index_copy(-1, there, result)

    part.forward = forward  # type: ignore[method-assign,assignment]


def _narrow(part: Any, positions: Tensor) -> None:
    """A convolution with standardised weights (Qiao et al., 2019) takes their statistics over the inputs that stay."""
    each = part.weight.shape[1]
    channels = torch.cat([positions + group * each for group in range(part.groups)])
    part.weight = nn.Parameter(part.weight.detach()[:, positions])
    part.in_channels = len(channels)
    whole: Callable[..., Tensor] = part.forward
    part.forward = lambda x: whole(x.index_select(1, channels))
