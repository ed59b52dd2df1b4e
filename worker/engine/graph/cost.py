"""Counting: parameters and multiply-accumulates, of a network as it is or as a cut would leave it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from worker.engine.graph.channels import tensor_named
from worker.engine.graph.cut import Cut
from worker.engine.graph.ops.modules import rules_for
from worker.engine.graph.ops.sizing import Sizing
from worker.engine.graph.ops.table import OPS
from worker.engine.graph.shapes import Sizes, is_tensor, record_shapes, sizes_of


def macs(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Multiply-accumulates for one sample, by layer (a layer called twice counts twice) or by name of an operator.

    Convolutions, linear maps, matrix products, attention and recurrent layers count; additions, normalisations,
    activations and look-ups do not. Dimension 0 of the first input is the batch.
    """
    record_shapes(graph, example_inputs)
    return _per_sample(graph, _AsIs(graph))


def macs_after(plan: Cut) -> int:
    """The total for one sample once `plan` is carried out."""
    return sum(_per_sample(plan.channels.graph, plan).values())


def parameters(graph: torch.nn.Module) -> int:
    """Values in parameters, a shared one once; buffers are not parameters."""
    return sum(parameter.numel() for parameter in graph.parameters())


def parameters_after(plan: Cut) -> int:
    """`parameters` once `plan` is carried out."""
    return sum(math.prod(plan.parameter(name)) for name, _ in plan.channels.graph.named_parameters())


def bytes_after(plan: Cut) -> int:
    """Of the weights in a file once `plan` is carried out: parameters and buffers, shared ones once."""
    graph = plan.channels.graph
    tensors = (*graph.named_parameters(), *graph.named_buffers())
    return sum(math.prod(plan.parameter(name)) * tensor.element_size() for name, tensor in tensors)


class _AsIs:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    def sizes(self, node: fx.Node) -> Sizes:
        return sizes_of(node)

    def parameter(self, name: str) -> Sizes:
        return tuple(tensor_named(self.graph, name).shape)


def batch_of(graph: fx.GraphModule) -> int:
    """Samples in the run that recorded the sizes: dimension 0 of the first input."""
    inputs = [sizes_of(node) for node in graph.graph.nodes if node.op == "placeholder" and is_tensor(node)]
    return next((sizes[0] for sizes in inputs if sizes), 1)


def node_cost(graph: fx.GraphModule, node: fx.Node, sizing: Sizing) -> int:
    """Multiply-accumulates of one call, for the whole batch."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        rules = rules_for(module)
        return rules.cost(node, module, sizing) if rules is not None and rules.cost is not None else 0
    return operator_cost(node, sizing)


def operator_cost(node: fx.Node, sizing: Sizing) -> int:
    """Multiply-accumulates of one call of an operator, for the whole batch; zero for what is none."""
    if isinstance(node.target, torch._ops.OpOverload):
        row = OPS.get(node.target.__name__)
        return row.cost(node, sizing) if row is not None and row.cost is not None else 0
    return 0


def _per_sample(graph: fx.GraphModule, sizing: Sizing) -> dict[str, int]:
    counted: dict[str, int] = {}
    for node in graph.graph.nodes:
        if (count := node_cost(graph, node, sizing)) > 0:
            name = str(node.target) if node.op == "call_module" else node.name
            counted[name] = counted.get(name, 0) + count
    batch = batch_of(graph)
    return {name: count // batch for name, count in counted.items()}
