"""What every layer rule works with: the graph, the parameters, and the modules made so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from torch import Tensor, fx, nn

Arguments = dict[str, Any]
"""A node's arguments by schema name, defaults filled in."""


class Lifter:
    """`graph` is changed in place; `layers` are the modules made, by name.

    `replaced` maps the id of a parameter to its new form.
    """

    def __init__(self, graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
        self.graph = graph
        self.layers: dict[str, nn.Module] = {}
        self.replaced: dict[int, nn.Parameter] = {}
        self._tensors = tensors
        self._aliases: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            self._aliases.setdefault(id(tensor), []).append(name)
        self._made: dict[Hashable, str] = {}
        self._folders = {".".join(parts[:n]) for parts in (k.split(".") for k in tensors) for n in range(1, len(parts))}

    def parameter(self, value: object, rank: int | None = None) -> nn.Parameter | None:
        """The parameter that `value` stands for, if it is one (of that rank)."""
        tensor = self.tensor(value)
        if isinstance(tensor, nn.Parameter) and (rank is None or tensor.dim() == rank):
            return tensor
        return None

    def tensor(self, value: object) -> Tensor | None:
        """The parameter, buffer or constant that `value` stands for."""
        if isinstance(value, fx.Node) and value.op == "get_attr":
            return self._tensors[str(value.target)]
        return None

    def sibling(self, value: fx.Node, leaf: str) -> Tensor | None:
        """The tensor called `leaf` in the same folder as the one `value` stands for."""
        path, _, _ = str(value.target).rpartition(".")
        return self._tensors.get(f"{path}.{leaf}" if path else leaf)

    def users(self, parameter: Tensor) -> list[fx.Node]:
        """Every node that uses the parameter, under any of its names."""
        nodes = [node for node in self.graph.nodes if node.op == "get_attr" and self.tensor(node) is parameter]
        return [user for node in nodes for user in node.users]

    def module(
        self,
        node: fx.Node,
        named_after: fx.Node,
        parameters: Iterable[Tensor | None],
        configuration: Hashable,
        make: Callable[[], nn.Module],
    ) -> str:
        """The name of the module with these parameters and this configuration; made once, however often it is called.

        It is named by the path of the tensor `named_after`: `layer3.0.conv1.weight` gives `layer3.0.conv1`. A tied
        tensor has several names; the one in the layer that made the call `node` counts.
        """
        key = (configuration, *(id(parameter) for parameter in parameters))
        if key not in self._made:
            name = self._free_name(self._own_name(node, named_after))
            self.layers[name] = make()
            self._made[key] = name
        return self._made[key]

    def add_dropout(self, name: str, module: nn.Module) -> str:
        """Keep a dropout under `name`, or one like it."""
        name = f"{name}.dropout" if name in self._folders else name
        free, number = name, 1
        while free in self.layers or free in self._tensors or free in self._folders:
            number += 1
            free = f"{name}_{number}"
        self.layers[free] = module
        return free

    def replace(self, node: fx.Node, name: str, *args: Any) -> fx.Node:
        """Call the module `name` in place of `node`."""
        call = self.call(node, name, *args)
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)
        return call

    def call(self, node: fx.Node, name: str, *args: Any) -> fx.Node:
        """Call the module `name` just before `node`, with the node's metadata."""
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, args)
        call.meta = dict(node.meta)
        return call

    def _own_name(self, node: fx.Node, named_after: fx.Node) -> str:
        target, layer = str(named_after.target), node.meta.get("layer")
        aliases = self._aliases[id(self._tensors[target])]
        return next((alias for alias in aliases if alias.rpartition(".")[0] == layer), target)

    def _free_name(self, tensor: str) -> str:
        path, _, leaf = tensor.rpartition(".")
        if not path or leaf not in ("weight", "weight_ih_l0", "running_mean"):
            leaf = re.sub(r"_?(weight|weight_ih_l0)$", "", leaf) or "layer"
            path = f"{path}.{leaf}" if path else leaf
        # A raw parameter `mix` used once gives the layer `mix`: nothing else then needs the name.
        used_once = path == tensor and len(self.users(self._tensors[tensor])) == 1
        name, number = path, 1
        while name in self.layers or (name in self._tensors and not (used_once and name == tensor)):
            number += 1
            name = f"{path}_{number}"
        return name


def hold(module: nn.Module, **parameters: nn.Parameter | None) -> nn.Module:
    """Give a module made on the meta device its real parameters."""
    for name, parameter in parameters.items():
        module.register_parameter(name, parameter)
    return module


def given(value: object, tensor: object) -> bool:
    """Whether an optional argument is either absent or was found as the tensor it must be."""
    return value is None or tensor is not None
