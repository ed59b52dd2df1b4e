"""Cutting: remove units from every tensor that has them, and mend the graph around the holes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, fx, nn

from worker.engine.graph.channels import Channels, tensor_named
from worker.engine.graph.labels import Axes, Axis, Value
from worker.engine.graph.ops.call import arguments_of, set_argument
from worker.engine.graph.ops.modules import rules_for
from worker.engine.graph.ops.pick import restored
from worker.engine.graph.ops.table import OPS
from worker.engine.graph.shapes import Sizes, sizes_of


class Cut:
    """What stays when `removed` units go: sizes and counts, by arithmetic on labels; nothing runs."""

    def __init__(self, channels: Channels, removed: Iterable[int]) -> None:
        self.channels = channels
        self.removed = torch.tensor(sorted(set(removed)), dtype=torch.int64)
        gone = np.zeros(len(channels.components.of), dtype=bool)
        gone[self.removed.numpy()] = True
        self._stays = ~gone[channels.components.of]
        self._inserted: dict[str, Axes] = {}

    def count(self, axis: Axis) -> int:
        return 0 if axis is None else int(np.count_nonzero(self._stays[axis]))

    def shrinks(self, axis: Axis) -> bool:
        return axis is not None and not bool(self._stays[axis].all())

    def kept(self, axis: Axis) -> Tensor | None:
        """Positions that stay on a dimension, int64; `None` when all do."""
        if axis is None or not self.shrinks(axis):
            return None
        return torch.from_numpy(np.flatnonzero(self._stays[axis]))

    def lost(self, axis: Axis) -> Tensor | None:
        """Positions that go."""
        if axis is None or not self.shrinks(axis):
            return None
        return torch.from_numpy(np.flatnonzero(~self._stays[axis]))

    def value(self, node: fx.Node) -> Value:
        return self._inserted[node.name] if node.name in self._inserted else self.channels.values[node.name]

    def axes(self, node: fx.Node) -> Axes:
        value = self.value(node)
        if not isinstance(value, list):
            raise TypeError(f"{node.name} is not one tensor")
        return value

    def restore(self, node: fx.Node) -> None:
        """Give `node` the operands it needs at full length, with zeros where indices went."""
        for name, dims in self.channels.restored.get(node.name, {}).items():
            given = arguments_of(node)[name]
            whole, axes = given, self.axes(given)
            for dim in dims:
                if (kept := self.kept(axes[dim])) is not None:
                    whole = restored(node, whole, dim, sizes_of(given)[dim], kept)
                    axes = [None if place == dim else axis for place, axis in enumerate(axes)]
                    self._inserted[whole.name] = axes
            if whole is not given:
                set_argument(node, name, whole)

    def sizes(self, node: fx.Node) -> Sizes:
        return self._left(node.meta["sizes"], self.axes(node))

    def parameter(self, name: str) -> Sizes:
        sizes = tuple(tensor_named(self.channels.graph, name).shape)
        return self._left(sizes, self.channels.parameters.get(name, [None] * len(sizes)))

    def _left(self, sizes: Sizes, axes: Axes) -> Sizes:
        return tuple(size if axis is None else self.count(axis) for size, axis in zip(sizes, axes, strict=True))


def cut(channels: Channels, removed: Iterable[int]) -> Tensor:
    """Remove the units with these component ids from `channels.graph`, in place; `channels` is spent afterwards.

    Shared parameters stay shared, `requires_grad` stays. Returns the ids, sorted int64: with an equal graph they
    repeat the cut.
    """
    plan = Cut(channels, removed)
    _cut_tensors(plan)
    for node in list(channels.graph.graph.nodes):
        plan.restore(node)
        _mend(node, plan)
    channels.graph.graph.lint()
    channels.graph.recompile()
    return plan.removed


def _cut_tensors(plan: Cut) -> None:
    done: dict[int, Tensor] = {}
    originals: list[Tensor] = []  # keeps ids unique while shared tensors are looked up
    for name, axes in plan.channels.parameters.items():
        path, _, leaf = name.rpartition(".")
        owner = plan.channels.graph.get_submodule(path)
        tensor = getattr(owner, leaf)
        originals.append(tensor)
        if id(tensor) not in done:
            done[id(tensor)] = smaller(tensor, axes, plan)
        if done[id(tensor)] is not tensor:
            setattr(owner, leaf, done[id(tensor)])


def smaller(tensor: Tensor, axes: Axes, plan: Cut) -> Tensor:
    if not any(plan.shrinks(axis) for axis in axes):
        return tensor
    smaller = tensor.detach()
    for dim, axis in enumerate(axes):
        if (kept := plan.kept(axis)) is not None:
            smaller = smaller.index_select(dim, kept.to(smaller.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    return smaller


def _mend(node: fx.Node, plan: Cut) -> None:
    if node.op == "call_module":
        module = plan.channels.graph.get_submodule(str(node.target))
        rules = rules_for(module)
        if rules is not None and rules.resize is not None:
            rules.resize(module, node, plan)
    elif isinstance(node.target, torch._ops.OpOverload):
        row = OPS.get(node.target.__name__)
        if row is not None and row.channels is not None and row.rewrite is not None:
            row.rewrite(node, plan)
