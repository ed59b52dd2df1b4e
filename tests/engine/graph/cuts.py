"""Cutting a lifted network and holding the result against the masked one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cost import macs, macs_after, parameters, parameters_after
from worker.engine.graph.cut import Cut, cut
from worker.engine.graph.maskcheck import TOLERANCE, mask_check
from worker.engine.graph.ops.call import Attention


@dataclass
class Halved:
    """A network before and after every group lost half of its units."""

    before: fx.GraphModule
    after: fx.GraphModule
    channels: Channels
    removed: list[int]
    inputs: tuple[Tensor, ...]


def half_of(channels: Channels) -> list[int]:
    """Every other unit of every group, so that positions matter."""
    return [unit for group in channels.groups for unit in group.units[::2][: len(group.units) // 2]]


def halve(graph: fx.GraphModule, inputs: tuple[Tensor, ...], attention: Attention = "heads") -> Halved:
    before = copy.deepcopy(graph)
    channels = analyse(graph, inputs, attention)
    removed = half_of(channels)
    cut(channels, removed)
    return Halved(before, graph, channels, removed, inputs)


def halve_and_prove(graph: fx.GraphModule, inputs: tuple[Tensor, ...], attention: Attention = "heads") -> Halved:
    """Cut half of every group. The cut network must be the masked one, differ from the uncut one, have the sizes that
    arithmetic on labels foretold, and train."""
    before = copy.deepcopy(graph)
    channels = analyse(graph, inputs, attention)
    removed = half_of(channels)
    plan = Cut(channels, removed)
    foretold = parameters_after(plan), macs_after(plan)
    cut(channels, removed)
    assert mask_check(copy.deepcopy(before), channels, removed, graph, inputs) <= TOLERANCE
    assert difference(before(*inputs), graph(*inputs)) > 1e-3
    assert (parameters(graph), sum(macs(graph, inputs).values())) == foretold
    assert gradients_flow(graph, inputs)
    return Halved(before, graph, channels, removed, inputs)


def gradients_flow(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    graph.zero_grad()
    torch.stack([tensor.float().pow(2).sum() for tensor in tensors(graph(*inputs))]).sum().backward()  # type: ignore[no-untyped-call]
    return all(p.grad is not None and p.grad.isfinite().all() for p in graph.parameters() if p.requires_grad)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [found for item in (value.values() if isinstance(value, dict) else value) for found in tensors(item)]


def difference(first: Any, second: Any) -> float:
    """The largest relative difference over all outputs."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return max(float(((a - b).abs().max() / a.abs().max()).detach()) for a, b in pairs)
