"""Weights that files hold in fewer bytes than they are computed with: in half precision, or a byte and a scale a row.

The graph holds what the stored numbers say, in single precision; a file holds the numbers, and makes the weights from
them with a cast or a look-up in a table and, where there are scales, a product. A runtime does that once, when it opens
the file.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.engine.graph.copies import sharing_copy


@dataclass(frozen=True)
class Stored:
    """One weight: `numbers` of its shape, places in `table` where there is one; for each index of dimension 0 a
    `scale`, or none at all."""

    numbers: Tensor
    scale: Tensor | None = None
    table: Tensor | None = None

    def values(self) -> Tensor:
        """The weight, in single precision."""
        return decoded(self.numbers, self.scale, self.table)

    @property
    def bits(self) -> int:
        return 8 * self.numbers.element_size()

    def parts(self) -> dict[str, Tensor]:
        """Its tensors, by what is added to the weight's name."""
        parts = {"": self.numbers, "_scale": self.scale, "_table": self.table}
        return {suffix: tensor for suffix, tensor in parts.items() if tensor is not None}


def decoded(numbers: Tensor, scale: Tensor | None, table: Tensor | None) -> Tensor:
    values = numbers.to(torch.float32) if table is None else table[numbers.to(torch.int64)]
    return values if scale is None else values * scale.reshape([-1] + [1] * (values.dim() - 1))


def stored_network(graph: fx.GraphModule, stored: Mapping[str, Stored]) -> fx.GraphModule:
    """A copy of `graph` that holds the numbers in place of the weights in `stored` (by parameter), each under the name
    that the weight had, its scale beside it; `graph` itself where there are none. What shares a weight shares them."""
    if not stored:
        return graph
    network = sharing_copy(graph)
    by_identity = {id(network.get_parameter(name)): each for name, each in stored.items()}
    called = {node.target for node in network.graph.nodes if node.op == "call_module"}
    for name, layer in list(network.named_modules()):
        own = {leaf: by_identity.get(id(parameter)) for leaf, parameter in layer.named_parameters(recurse=False)}
        held = {leaf: each for leaf, each in own.items() if each is not None}
        if held and name in called:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, StoredLayer(layer, held))
        elif held:
            _hold(layer, held)
            for leaf, each in held.items():
                _decode_where_read(network.graph, f"{name}.{leaf}" if name else leaf, each)
    network.recompile()
    return network


class StoredLayer(nn.Module):
    """`layer` with some of its weights made from stored numbers whenever it runs."""

    def __init__(self, layer: nn.Module, stored: Mapping[str, Stored]) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters(recurse=False):
            if name not in stored:
                self.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
        _hold(self, stored)
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in layer.named_children():
            self.add_module(name, child)
        self._names = [name for name, _ in layer.named_parameters(recurse=False)]
        self._kind = type(layer)
        self._settings = {
            name: value for name, value in layer.__dict__.items() if name not in ("_flat_weights", "_flat_weight_refs")
        } | {"_parameters": {}, "_buffers": {}, "_modules": {}}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer: one of its class, made for this call, has the weights as plain attributes."""
        layer = self._kind.__new__(self._kind)
        layer.__dict__ |= {"weight": None, "bias": None} | self._settings | self._buffers
        for name in self._names:
            value = getattr(self, name)
            if name in self._buffers:
                value = decoded(value, *(self._buffers.get(f"{name}_{part}") for part in ("scale", "table")))
            layer.__dict__[name] = value
        if isinstance(layer, nn.RNNBase):
            weights = [layer.__dict__[name] for name in layer._flat_weights_names]
            layer.__dict__ |= {"_flat_weights": weights, "_flat_weight_refs": [weakref.ref(each) for each in weights]}
        return layer.forward(*args, **kwargs)


def _hold(layer: nn.Module, stored: Mapping[str, Stored]) -> None:
    for name, each in stored.items():
        layer._parameters.pop(name, None)
        for suffix, tensor in each.parts().items():
            layer.register_buffer(f"{name}{suffix}", tensor)


def _decode_where_read(graph: fx.Graph, name: str, stored: Stored) -> None:
    for node in graph.find_nodes(op="get_attr", target=name):
        parts = stored.parts()
        with graph.inserting_before(next(iter(node.users))):
            scale, table = (graph.get_attr(f"{name}{part}") if part in parts else None for part in ("_scale", "_table"))
            value = graph.call_function(decoded, (node, scale, table))
        node.replace_all_uses_with(value, delete_user_cb=lambda user, value=value: user is not value)
