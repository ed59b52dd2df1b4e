"""A network in words and numbers: its layers, what each costs, what can be removed and why the rest cannot."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from models.inspection import FactorInfo, GroupInfo, LayerInfo, NetworkFormat, NetworkInspection, Notice
from worker.engine.graph.bypass import Bypasses
from worker.engine.graph.channels import Channels, analyse, tensor_named
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.factorable import factorable
from worker.engine.graph.roles import consumers, head_units
from worker.engine.graph.sizes import sizes_of_network
from worker.engine.subject import Subject


def describe_network(
    subject: Subject,
    format: NetworkFormat,  # noqa: A002
    warnings: Sequence[Notice] = (),
) -> NetworkInspection:
    """Layers in the order they run: those with parameters, parameters used on their own, and operators that multiply.

    A layer's `shape` is its weight's. Parameters shared by two layers count in both, but once in the total.
    """
    inputs = subject.example_inputs()
    channels = analyse(subject.graph, inputs)
    costs = macs(subject.graph, inputs)
    return NetworkInspection(
        format=format,
        inputs=list(subject.inputs),
        outputs=list(subject.outputs),
        parameters=parameters(subject.graph),
        macs=sum(costs.values()),
        layers=_layers(channels, costs),
        groups=_groups(channels),
        sizes=sizes_of_network(channels),
        warnings=list(warnings),
    )


def _groups(channels: Channels) -> list[GroupInfo]:
    heads = head_units(channels)
    whole = {group.id for branch in Bypasses(channels).branches() for group in branch.groups}
    return [
        GroupInfo(
            id=group.id,
            units=len(group.units),
            layers=list(group.layers),
            widths=list(group.widths),
            heads=group.units[0] in heads,
            consumers=list(consumers(channels, group)),
            whole=group.id in whole,
        )
        for group in channels.groups
    ]


def _layers(channels: Channels, costs: dict[str, int]) -> list[LayerInfo]:
    found = {layer.name: layer for layer in channels.layers}
    described: dict[str, LayerInfo] = {}
    factors = {name: info for name, info in factorable(channels.graph).items() if isinstance(info, FactorInfo)}
    for node in channels.graph.graph.nodes:
        name = node.name if node.op == "call_function" else str(node.target)
        if name in described or not (name in found or name in costs):
            continue
        layer = found.get(name)
        kind, shape, count = _measure(channels.graph, node)
        reason = layer.frozen if layer is not None else "has no channels of its own: it follows the layers that feed it"
        described[name] = LayerInfo(
            name=name,
            kind=kind,
            shape=shape,
            parameters=count,
            macs=costs.get(name, 0),
            group=layer.groups[0] if layer is not None and layer.groups else None,
            prunable=bool(layer is not None and layer.groups),
            reason=None if layer is not None and layer.groups else reason,
            factors=factors.get(name),
        )
    return list(described.values())


def _measure(graph: fx.GraphModule, node: fx.Node) -> tuple[str, list[int], int]:
    """Kind, shape and count of parameters of one layer."""
    if node.op == "get_attr":
        tensor = tensor_named(graph, str(node.target))
        return "Parameter", list(tensor.shape), tensor.numel()
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target)).split(".")[0], [], 0
    module = graph.get_submodule(str(node.target))
    own = dict(module.named_parameters(recurse=False))
    weight = next((tensor for leaf, tensor in own.items() if leaf.startswith("weight")), next(iter(own.values())))
    return type(module).__name__, list(weight.shape), sum(tensor.numel() for tensor in own.values())
