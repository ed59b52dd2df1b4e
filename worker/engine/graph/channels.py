"""Channel analysis: which indices of which parameters can only be removed together, and which must stay, and why.

Every index of every parameter dimension gets a label; rules carry labels through the graph and tie those that meet.
A connected component is the smallest removable unit; components that touch the same parameter dimensions form a group.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from worker.engine.graph.labels import Axes, Components, Indices, Labels, Refusal, Value, axes_of
from worker.engine.graph.ops.call import Attention, Call, describe
from worker.engine.graph.ops.modules import rules_for
from worker.engine.graph.ops.table import OPS
from worker.engine.graph.shapes import record_shapes


@dataclass(frozen=True)
class Member:
    """One dimension of a parameter or buffer."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class Group:
    """Units that touch the same parameter dimensions.

    `units` are component ids; `layers` are those whose outputs shrink, first to last; `widths` says how many output
    channels of those that multiply one unit is (a head is many).
    """

    id: str
    units: tuple[int, ...]
    members: tuple[Member, ...]
    layers: tuple[str, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer with parameters, or a parameter used on its own. `groups` hold its outputs; without any, `frozen` says
    why."""

    name: str
    groups: tuple[str, ...]
    frozen: str | None


@dataclass(frozen=True)
class Channels:
    """What the analysis of `graph` found. `values` has the labels of each node by name, `parameters` those of each
    parameter and buffer that the graph uses; shared ones appear once per name with the same labels. `restored` names
    the operands, by node and argument, that need these dimensions at full length."""

    graph: fx.GraphModule
    values: Mapping[str, Value]
    parameters: Mapping[str, Axes]
    components: Components
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    restored: Mapping[str, Mapping[str, tuple[int, ...]]]

    def units_of(self, axis: Indices) -> Indices:
        """The component id of every index."""
        return self.components.of[axis]


def analyse(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...], attention: Attention = "heads") -> Channels:
    """Label `graph`, which must run on `example_inputs` (two samples or more). Equal graphs give equal component ids.

    `attention` decides what shrinks where channels split into heads and features. Where that turns out to be stuck
    (heads that must all stay, or only go together), the other one is tried, and the analysis that frees more is kept.
    """
    record_shapes(graph, example_inputs)
    avoided: dict[str, frozenset[int]] = {}
    best, stuck = _label(graph, attention, avoided)
    for _ in range(_OTHER_TRIES):
        if not stuck:
            break
        avoided = {name: avoided.get(name, frozenset()) | stuck.get(name, frozenset()) for name in avoided | stuck}
        other, stuck = _label(graph, attention, avoided)
        stuck = {name: dims for name, dims in stuck.items() if not dims <= avoided.get(name, frozenset())}
        best = max(best, other, key=_freedom)
    return best


_OTHER_TRIES = 2


def _label(
    graph: fx.GraphModule, attention: Attention, avoided: Mapping[str, frozenset[int]]
) -> tuple[Channels, dict[str, frozenset[int]]]:
    """One pass over the graph that does not split channels along `avoided` dimensions, and where its own choice of a
    dimension is stuck."""
    labels = Labels(avoided)
    found = _Parameters(graph, labels)
    values: dict[fx.Node, Value] = {}
    restored: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for node in graph.graph.nodes:
        values[node] = _visit(node, graph, labels, values, found, attention, restored)
    components, parameters = labels.solve(), found.axes
    outputs = _layer_outputs(graph, values, parameters, components)
    groups = _groups(graph, parameters, components, outputs)
    layers = tuple(_layer(name, units, groups, components) for name, (units, _) in outputs.items())
    by_name = {node.name: value for node, value in values.items()}
    channels = Channels(graph, by_name, parameters, components, groups, layers, restored)
    stuck = {name: frozenset({dim}) for name, dim, axis in labels.choices if _is_stuck(components, axis)}
    return channels, stuck


def _is_stuck(components: Components, axis: Indices) -> bool:
    units = np.unique(components.of[axis]).tolist()
    return len(units) == 1 or all(unit in components.frozen for unit in units)


def _freedom(channels: Channels) -> float:
    """How many values of parameters lie on dimensions that can shrink, once for each such dimension."""
    free = np.zeros(len(channels.components.of), dtype=bool)
    free[[unit for group in channels.groups if len(group.units) > 1 for unit in group.units]] = True
    return sum(
        tensor_named(channels.graph, name).numel() * float(free[channels.units_of(axis)].mean())
        for name, axes in channels.parameters.items()
        for axis in axes_of(axes)
    )


class _Parameters:
    """Labels of parameters and buffers, made when first asked for. One tensor under several names has one set;
    integers have no channels."""

    def __init__(self, graph: fx.GraphModule, labels: Labels) -> None:
        self.axes: dict[str, Axes] = {}
        self._graph, self._labels = graph, labels
        self._by_tensor: dict[int, Axes] = {}

    def of(self, name: str) -> Axes:
        if name not in self.axes:
            tensor = tensor_named(self._graph, name)
            if id(tensor) not in self._by_tensor:
                self._by_tensor[id(tensor)] = self._fresh(tensor)
            self.axes[name] = self._by_tensor[id(tensor)]
        return self.axes[name]

    def _fresh(self, tensor: Tensor) -> Axes:
        floating = tensor.is_floating_point()
        return [self._labels.fresh(size) if floating and size > 1 else None for size in tensor.shape]


def _visit(
    node: fx.Node,
    graph: fx.GraphModule,
    labels: Labels,
    values: dict[fx.Node, Value],
    parameters: _Parameters,
    attention: Attention,
    restored: dict[str, Mapping[str, tuple[int, ...]]],
) -> Value:
    if node.op == "get_attr":
        return list(parameters.of(str(node.target)))
    if node.op == "output":
        for source in node.all_input_nodes:
            labels.freeze_value(values[source], "feeds the output of the network")
        return None
    if node.op == "placeholder":
        return _fixed(node.meta["sizes"])
    if node.target is operator.getitem:
        (whole,), place = node.all_input_nodes, node.args[1]
        value = values[whole]
        return value[place] if isinstance(value, tuple) and isinstance(place, int) else None
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    call = Call(node, labels, values, parameters.of, attention, module)
    try:
        value = _apply(call)
        if missed := call.untaken():
            raise Refusal(f"has no rule for its operand {' and '.join(missed)}")
    except (Refusal, TypeError, ValueError, IndexError) as error:
        # What a rule did not expect is no reason to fail: all it needs to know is that it does not know.
        why = error if isinstance(error, Refusal) else "is called in a way that its channel rule does not know"
        _freeze_all(call, f"feeds {describe(node)}, which {why}")
        return _fixed(node.meta["sizes"])
    if call.restored:
        restored[node.name] = call.restored
    return value


def _apply(call: Call) -> Value:
    target = call.node.target
    if call.module is not None:
        rules = rules_for(call.module)
        if rules is None:
            raise Refusal("has no channel rule")
        return rules.channels(call, call.module)
    if isinstance(target, torch._ops.OpOverload):
        row = OPS.get(target.__name__)
        if row is None or row.channels is None:
            raise Refusal("has no channel rule")
        value: Value = row.channels(call)
        return value
    return None


def _freeze_all(call: Call, why: str) -> None:
    for source in call.node.all_input_nodes:
        call.labels.freeze_value(call.values[source], why)
    if call.module is not None:
        for name, _ in (*call.module.named_parameters(), *call.module.named_buffers()):
            call.labels.freeze_value(call.parameters(f"{call.node.target}.{name}"), why)


def _fixed(sizes: object) -> Value:
    if isinstance(sizes, tuple):
        return [None] * len(sizes)
    if isinstance(sizes, list):
        return tuple(_fixed(item) for item in sizes)
    return None


def tensor_named(graph: nn.Module, name: str) -> Tensor:
    """The parameter or buffer at a dotted name."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(graph.get_submodule(path), leaf)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is not a tensor")
    return tensor


_Outputs = dict[str, tuple[set[int], dict[int, set[int]]]]
"""For each layer: the units of its outputs, and for each unit how many channels of an output dimension it is. Only
layers that multiply have the latter: a table with one entry a head should not decide how many heads may stay."""


def _layer_outputs(
    graph: fx.GraphModule, values: dict[fx.Node, Value], parameters: dict[str, Axes], components: Components
) -> _Outputs:
    own: dict[str, set[int]] = {}
    for name, axes in parameters.items():
        for owner in (name, name.rpartition(".")[0]):
            own.setdefault(owner, set()).update(u for axis in axes_of(axes) for u in components.of[axis].tolist())
    outputs: _Outputs = {}
    for node in filter(lambda node: _is_layer(graph, node), graph.graph.nodes):
        name = str(node.target)
        rules = rules_for(graph.get_submodule(name)) if node.op == "call_module" else None
        units, widths = outputs.setdefault(name, (set(), {}))
        for axis in axes_of(values[node]):
            found, counts = np.unique(components.of[axis], return_counts=True)
            for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
                if unit in own.get(name, ()):
                    units.add(unit)
                    if rules is not None and rules.cost is not None:
                        widths.setdefault(unit, set()).add(count)
    return outputs


def _is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """A module with parameters, or a parameter that the graph uses itself."""
    if node.op == "call_module":
        return any(True for _ in graph.get_submodule(str(node.target)).parameters())
    return node.op == "get_attr" and isinstance(tensor_named(graph, str(node.target)), nn.Parameter)


def _groups(
    graph: fx.GraphModule, parameters: dict[str, Axes], components: Components, outputs: _Outputs
) -> tuple[Group, ...]:
    touched: dict[int, list[Member]] = {}
    for name, axes in parameters.items():
        for dim, axis in enumerate(axes):
            if axis is not None:
                for unit in np.unique(components.of[axis]).tolist():
                    touched.setdefault(unit, []).append(Member(name, dim))
    trained = {name for name in parameters if isinstance(tensor_named(graph, name), nn.Parameter)}
    gathered: dict[tuple[Member, ...], list[int]] = {}
    for unit, members in touched.items():
        # Tables that are not trained, such as the frequencies of rotary positions, are only cut along with weights.
        if unit not in components.frozen and any(member.parameter in trained for member in members):
            gathered.setdefault(tuple(members), []).append(unit)
    groups: list[Group] = []
    seen: dict[str, int] = {}
    for signature, units in gathered.items():
        layers = tuple(name for name, (own, _) in outputs.items() if units[0] in own)
        widths = {width for name in layers for width in outputs[name][1].get(units[0], ())}
        modules = [name for name in layers if name not in parameters]
        first = [*modules, *layers, signature[0].parameter][0]
        seen[first] = seen.get(first, 0) + 1
        name = first if seen[first] == 1 else f"{first}:{seen[first]}"
        groups.append(Group(name, tuple(sorted(units)), signature, layers, tuple(sorted(widths or {1}))))
    return tuple(groups)


def _layer(name: str, units: set[int], groups: tuple[Group, ...], components: Components) -> Layer:
    own = tuple(group.id for group in groups if group.units[0] in units)
    if own:
        return Layer(name, own, None)
    reasons = [components.frozen[unit] for unit in sorted(units) if unit in components.frozen]
    return Layer(name, (), reasons[0] if reasons else "has no output channels to remove")
