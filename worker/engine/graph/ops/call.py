"""What a channel rule sees: one call in the graph, its operands' labels, and a way to say what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn

from worker.engine.graph.labels import FIXED, Axes, Axis, Labels, Refusal, Value
from worker.engine.graph.ops.aliases import shares_memory
from worker.engine.graph.ops.reach import decides_output
from worker.engine.graph.shapes import Sizes, is_tensor, sizes_of

Attention = Literal["heads", "features"]
"""Where a split of channels into (heads, features) can shrink on either axis: the one that does."""


@dataclass
class Call:
    """One call. The analysis freezes all operands of a call whose rule did not take every one of them."""

    node: fx.Node
    labels: Labels
    values: dict[fx.Node, Value]
    parameters: Callable[[str], Axes]
    attention: Attention
    module: nn.Module | None = None
    taken: set[tuple[str, int]] = field(default_factory=set)
    restored: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = arguments_of(self.node)

    def argument(self, name: str) -> Any:
        return self.arguments[name]

    def operand(self, name: str) -> Axes:
        """The labels of a tensor operand, as a list the rule may change."""
        node = self.arguments[name]
        if not is_tensor(node):
            raise Refusal(f"needs a tensor as `{name}`")
        self.taken.add((name, 0))
        return self._axes(node)

    def whole(self, name: str, dims: Sequence[int]) -> Axes:
        """The labels of an operand that the operator needs at full length along `dims`: after a cut it gets zeros where
        indices went, as in the masked network, and nothing in the result follows them."""
        axes = self.operand(name)
        labelled = [dim for dim in sorted({dim % len(axes) for dim in dims}) if axes[dim] is not None]
        if kept := [dim for dim in labelled if self._why_not_restored(name, axes[dim], dim) is None]:
            self.restored[name] = tuple(kept)
        for dim in labelled:
            if why := self._why_not_restored(name, axes[dim], dim):
                self.freeze(axes[dim], why)
        return [None if dim in labelled else axis for dim, axis in enumerate(axes)]

    def _why_not_restored(self, name: str, axis: Axis, dim: int) -> str | None:
        if self.labels.is_all_soft(axis):
            return "is needed whole"
        if dim in self.arguments[name].meta["growing"]:
            return "is mixed with other samples"
        if shares_memory(self.node):
            return "is needed whole, and in place,"
        return "makes the output of the network" if decides_output(self.node) else None

    @staticmethod
    def steady(node: fx.Node, dim: int) -> None:
        """Refuse to write down places along a dimension that holds samples too."""
        if dim in node.meta["growing"]:
            raise Refusal("works along channels of all samples at once")

    def number(self, name: str) -> int:
        """A whole number, also one computed from sizes: as it is for the example."""
        value = self.arguments[name]
        number = value.meta["number"] if isinstance(value, fx.Node) else value
        if not isinstance(number, int):
            raise Refusal(f"computes its `{name}` while running")
        return number

    def optional(self, name: str) -> Axes | None:
        return self.operand(name) if is_tensor(self.arguments.get(name)) else None

    def operands(self, name: str) -> list[Axes]:
        """The labels of a list of tensors."""
        nodes = self.arguments[name]
        self.taken.update((name, index) for index in range(len(nodes)))
        return [self._axes(node) for node in nodes]

    def all_operands(self) -> list[tuple[Axes, Sizes]]:
        """Every tensor operand, in order, with its sizes."""
        found = list(tensor_operands(self.arguments))
        self.taken.update((name, index) for name, index, _ in found)
        return [(self._axes(node), sizes_of(node)) for _, _, node in found]

    def sizes(self, name: str) -> Sizes:
        return sizes_of(self.arguments[name])

    @property
    def result_sizes(self) -> Sizes:
        return sizes_of(self.node)

    @property
    def results_sizes(self) -> list[Sizes]:
        return list(self.node.meta["sizes"])

    def parameter(self, leaf: str) -> Axes | None:
        """The labels of the module's own parameter or buffer."""
        self.taken.add((leaf, -1))
        if getattr(self.module, leaf, None) is None:
            return None
        return self.parameters(f"{self.node.target}.{leaf}")

    def untaken(self) -> list[str]:
        """Tensor operands, parameters and buffers that the rule has not looked at."""
        missed = [name for name, index, _ in tensor_operands(self.arguments) if (name, index) not in self.taken]
        if self.module is not None:
            missed += [
                leaf
                for leaf, tensor in module_tensors(self.module)
                if tensor.is_floating_point() and tensor.dim() > 0 and (leaf, -1) not in self.taken
            ]
        return missed

    def tie(self, first: Axis, second: Axis) -> Axis:
        return self.labels.tie(first, second, f"{FIXED} by {describe(self.node)}")

    def freeze(self, axis: Axis, why: str) -> None:
        self.labels.freeze(axis, f"{why} in {describe(self.node)}")

    def _axes(self, node: fx.Node) -> Axes:
        value = self.values[node]
        if not isinstance(value, list):
            raise Refusal("needs a tensor")
        return list(value)


def describe(node: fx.Node) -> str:
    """A node in words: the operator and its name, or the layer."""
    if node.op == "call_module":
        return f"layer {node.target}"
    operator = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return f"operator {operator} ({node.name})"


def module_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments by name, defaults filled in. Modules of the lifted graph take `input` and perhaps `hx`."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {**dict(zip(("input", "hx"), node.args, strict=False)), **node.kwargs}
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            found[argument.name] = node.args[position]
        else:
            default = argument.default_value if argument.has_default_value() else None
            found[argument.name] = node.kwargs.get(argument.name, default)
    return found


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replace one argument of a call, by name."""
    target = node.target
    if node.op == "call_module" and name == "input" and node.args:
        node.args = (value, *node.args[1:])
        return
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} is not an ATen call")
    for position, argument in enumerate(target._schema.arguments):
        if argument.name != name:
            continue
        if position < len(node.args) and not argument.kwarg_only:
            node.args = (*node.args[:position], value, *node.args[position + 1 :])
        else:
            node.kwargs = {**node.kwargs, name: value}
        return
    raise KeyError(name)


def call_before(node: fx.Node, shape: Sequence[int | None], target: Any, *args: Any) -> fx.Node:
    """A call ahead of `node` whose result has that shape, and otherwise is like it."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    made.meta = {**node.meta, "shape": list(shape)}
    return made


def tensor_operands(arguments: dict[str, Any]) -> Iterator[tuple[str, int, fx.Node]]:
    """Every argument that is a tensor, with its name and its place in a list argument."""
    for name, argument in arguments.items():
        items = argument if isinstance(argument, (list, tuple)) else [argument]
        yield from ((name, index, item) for index, item in enumerate(items) if is_tensor(item))
