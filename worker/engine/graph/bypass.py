"""Removing whole groups: what computed them goes, and where their branch joined the rest a constant stays.

A branch that ends in a sum, a product or any other pointwise operator with what goes around it can lose all units of a
group: the layers that read them then give their bias, which normalisations and activations turn into one number a
channel. Groups of the same branch go together. Whether that is the network with these units silenced is left to the
mask check, as with every cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from worker.engine.graph.channels import Channels, Group, tensor_named
from worker.engine.graph.labels import Refusal, Value, axes_of
from worker.engine.graph.ops import elementwise
from worker.engine.graph.ops.call import describe
from worker.engine.graph.ops.table import OPS

_POINTWISE = (elementwise.elementwise, elementwise.arithmetic)
_MOVES = frozenset({"permute", "transpose"})
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.PReLU, nn.modules.dropout._DropoutNd)
_NAMED = ("call_module", "get_attr")
_OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Branch:
    """Groups that can only go together."""

    groups: tuple[Group, ...]

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(sorted(unit for group in self.groups for unit in group.units))


@dataclass
class _Zone:
    """Nodes without anything left: `empty` values have no channels, `constant` ones no say; `joins` are where live
    values meet constants."""

    empty: set[fx.Node] = field(default_factory=set)
    constant: set[fx.Node] = field(default_factory=set)
    joins: list[fx.Node] = field(default_factory=list)


class Bypasses:
    """What can go from an analysed graph as a whole."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._moving: set[fx.Node] = set()
        self._units: dict[fx.Node, tuple[list[frozenset[int]], ...]] = {}
        for node in channels.graph.graph.nodes:
            if node.op == "placeholder" or not self._moving.isdisjoint(node.all_input_nodes):
                self._moving.add(node)
            self._units[node] = tuple(self._units_of(channels.values[node.name]))

    def branches(self) -> list[Branch]:
        """Every set of groups that can go as a whole, in the order of their first layers."""
        found: dict[frozenset[str], Branch] = {}
        for group in self._channels.groups:
            closed = self._closure(group)
            if closed is not None:
                found.setdefault(frozenset(each.id for each in closed), Branch(tuple(closed)))
        return list(found.values())

    def can_go(self, units: Iterable[int]) -> bool:
        """Whether `bypass` can take these units, all those of some branches, at once."""
        try:
            self.zone(units)
        except Refusal:
            return False
        return True

    def zone(self, units: Iterable[int]) -> _Zone:
        """What is left of the graph. Raises Refusal, with the reason, where something needs what goes."""
        zone, gone = _Zone(), frozenset(units)
        for node in self._channels.graph.graph.nodes:
            empty = any(source in zone.empty for source in node.all_input_nodes)
            constant = any(source in zone.constant for source in node.all_input_nodes)
            if node.op == "output":
                if empty or constant:
                    raise Refusal("feeds the output of the network")
            elif self._is_gone(node, gone):
                if node.op == "call_module" and empty and isinstance(_module(self._channels, node), _OVER_CHANNELS):
                    raise Refusal(f"is what {describe(node)} runs over")
                zone.empty.add(node)
            elif empty:
                if not _contracts(self._channels, node):
                    raise Refusal(f"is needed by {describe(node)}")
                zone.constant.add(node)
            elif constant:
                live = [s for s in node.all_input_nodes if s in self._moving and s not in zone.constant]
                _meet(self._channels, node, zone, live)
        return zone

    def _closure(self, group: Group) -> list[Group] | None:
        """`group` and all groups whose layers do nothing any more without it; None when it cannot go."""
        groups, closed = self._channels.groups, [group]
        while True:
            try:
                zone = self.zone(unit for each in closed for unit in each.units)
            except Refusal:
                return None
            dead = {str(node.target) for node in _dead(self._channels.graph, zone) if node.op in _NAMED}
            more = [each for each in groups if each not in closed and each.layers and dead.issuperset(each.layers)]
            if not more:
                return [each for each in groups if each in closed]
            closed += more

    def _units_of(self, value: Value) -> Iterator[list[frozenset[int]]]:
        """For each tensor of a value, the units of each of its dimensions."""
        if isinstance(value, tuple):
            for part in value:
                yield from self._units_of(part)
        else:
            yield [frozenset(np.unique(self._channels.units_of(axis)).tolist()) for axis in axes_of(value)]

    def _is_gone(self, node: fx.Node, gone: frozenset[int]) -> bool:
        """Whether nothing of a value is left. Raises Refusal when only a part of it, or of a dimension, is."""
        lost = [[axis for axis in tensor if not gone.isdisjoint(axis)] for tensor in self._units[node]]
        if not any(lost):
            return False
        if not all(lost) or any(not axis <= gone for tensor in lost for axis in tensor):
            raise Refusal("is a part of something else")
        return True


def bypass(channels: Channels, removed: Iterable[int]) -> Tensor:
    """Take all units with these component ids, whole branches of `channels.graph`, out in place; `channels` is spent
    afterwards. Returns the ids, sorted int64: with an equal graph they repeat it. Raises Refusal where `can_go` says
    no."""
    graph, units = channels.graph, sorted(set(removed))
    zone = Bypasses(channels).zone(units)
    with torch.no_grad():
        left = _constants(graph, zone)
    for join in zone.joins:
        _rejoin(graph, join, zone, left)
    _erase(graph, zone)
    graph.graph.lint()
    graph.recompile()
    return torch.tensor(units, dtype=torch.int64)


def _meet(channels: Channels, node: fx.Node, zone: _Zone, live: Sequence[fx.Node]) -> None:
    """`node` has a constant operand and `live` ones."""
    still = [s for s in node.all_input_nodes if s not in zone.constant and s not in live]
    pointwise = _is_pointwise(node)
    if live:
        changed = node.args[0] if _is_mutable(node) else None
        if not pointwise or (changed in zone.constant and len(changed.users) > 1):  # type: ignore[union-attr]
            raise Refusal(f"is needed by {describe(node)}")
        zone.joins.append(node)
    elif all(source.op == "get_attr" for source in still) and (pointwise or _keeps_constant(channels, node)):
        zone.constant.add(node)
    else:
        raise Refusal(f"is needed by {describe(node)}")


def _module(channels: Channels, node: fx.Node) -> nn.Module:
    return channels.graph.get_submodule(str(node.target))


def _contracts(channels: Channels, node: fx.Node) -> bool:
    """A layer that adds its input channels up: without any it gives its bias."""
    layer = _module(channels, node) if node.op == "call_module" else None
    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and getattr(layer, "groups", 1) == 1


def _keeps_constant(channels: Channels, node: fx.Node) -> bool:
    """Whether one number a channel stays one number a channel."""
    if node.op != "call_module":
        return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket.__name__ in _MOVES
    layer = _module(channels, node)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return not layer.transposed and set(layer.kernel_size) == {1} and set(layer.padding) == {0}
    return isinstance(layer, (nn.Linear, *_PER_CHANNEL))


def _is_pointwise(node: fx.Node) -> bool:
    row = OPS.get(node.target.__name__) if isinstance(node.target, torch._ops.OpOverload) else None
    return row is not None and row.channels in _POINTWISE


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _constants(graph: fx.GraphModule, zone: _Zone) -> dict[fx.Node, Tensor]:
    """Each constant with one number a channel, its other dimensions of size one."""
    found: dict[fx.Node, Tensor] = {}

    def known(source: fx.Node) -> Tensor:
        return found[source].clone() if source in found else tensor_named(graph, str(source.target)).detach()

    for node in graph.graph.nodes:
        if node not in zone.constant:
            continue
        if any(source in zone.empty for source in node.all_input_nodes):
            found[node] = _bias(graph.get_submodule(str(node.target)), len(node.meta["sizes"]))
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
        operator = graph.get_submodule(node.target) if node.op == "call_module" else node.target
        found[node] = operator(*args, **kwargs)
    return found


def _bias(layer: Any, rank: int) -> Tensor:
    """What a layer without inputs gives: its bias, or zeros."""
    last = isinstance(layer, nn.Linear)
    outputs = layer.out_features if last else layer.out_channels
    values: Tensor = layer.weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach().clone()
    return values.reshape([1] * (rank - 1) + [-1] if last else [1, -1] + [1] * (rank - 2))


def _rejoin(graph: fx.GraphModule, join: fx.Node, zone: _Zone, left: dict[fx.Node, Tensor]) -> None:
    """Put a parameter in the place of each constant operand; a sum with nothing but zeros is no sum."""
    constant = [source for source in join.all_input_nodes if source in zone.constant]
    live = [source for source in join.all_input_nodes if source not in zone.constant]
    packet = join.target.overloadpacket.__name__  # type: ignore[union-attr]
    if packet in ("add", "add_") and not any(left[source].any() for source in constant) and _is_plain_sum(join, live):
        join.replace_all_uses_with(live[0])
        graph.graph.erase_node(join)
        return
    if _is_mutable(join) and join.args[0] in zone.constant:
        plain = getattr(torch.ops.aten, packet.removesuffix("_"))
        join.target = getattr(plain, join.target._overloadname)  # type: ignore[union-attr]
    for source in constant:
        name = f"left_by_{source.name}"
        graph.register_parameter(name, nn.Parameter(left[source].clone()))
        with graph.graph.inserting_before(join):
            parameter = graph.graph.get_attr(name)
        join.replace_input_with(source, parameter)


def _is_plain_sum(join: fx.Node, live: Sequence[fx.Node]) -> bool:
    return len(live) == 1 and len(join.args) == 2 and not join.kwargs and live[0].meta["sizes"] == join.meta["sizes"]


def _dead(graph: fx.GraphModule, zone: _Zone) -> set[fx.Node]:
    """Nodes whose value nobody needs any more."""
    dead = zone.empty | zone.constant
    for node in reversed(list(graph.graph.nodes)):
        if node.op in ("placeholder", "output") or node in dead or not node.users:
            continue
        if all(user in dead for user in node.users) and not _changes_another(node, dead):
            dead.add(node)
    return dead


def _changes_another(node: fx.Node, dead: set[fx.Node]) -> bool:
    """An in-place operator whose tensor somebody else sees."""
    if not _is_mutable(node):
        return False
    changed = node.args[0]
    fresh = isinstance(changed, fx.Node) and changed.op == "call_module"
    return not fresh or any(user is not node and user not in dead for user in changed.users)  # type: ignore[union-attr]


def _erase(graph: fx.GraphModule, zone: _Zone) -> None:
    """Take out what is dead, and the parameters that only it used."""
    dead = _dead(graph, zone)
    for node in reversed(list(graph.graph.nodes)):
        unused = not node.users and node.op not in ("placeholder", "output") and not _is_mutable(node)
        if node in dead or unused:
            graph.graph.erase_node(node)
    used = {str(node.target) for node in graph.graph.nodes if node.op in _NAMED}
    for name, _ in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]:
        path, _, leaf = name.rpartition(".")
        if name not in used and path not in used:
            delattr(graph.get_submodule(path), leaf)
    for path in reversed([path for path, _ in graph.named_modules() if path]):
        if not any(name == path or name.startswith(f"{path}.") for name in used):
            parent, _, leaf = path.rpartition(".")
            delattr(graph.get_submodule(parent), leaf)
