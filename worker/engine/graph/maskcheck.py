"""The mask check: a cut network must equal the uncut one with the removed units silenced."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worker.engine.graph.channels import Channels, tensor_named
from worker.engine.graph.cut import Cut
from worker.engine.graph.labels import Axes, Value
from worker.engine.graph.ops.call import arguments_of, set_argument
from worker.engine.graph.ops.reduce import only_values_used

TOLERANCE = 1e-5
"""Largest relative difference that rounding explains: single precision, sums in another order."""
_BATCH_TOLERANCE = 1e-3
"""Kernels differ with the batch, and some networks magnify rounding; a wrong constant does not come this close."""


def mask_check(
    before: fx.GraphModule,
    channels: Channels,
    removed: Iterable[int],
    after: fx.GraphModule,
    inputs: tuple[Tensor, ...],
) -> float:
    """How far `after` (cut) is from `before` (a copy made before the cut) with the `removed` units silenced: over all
    outputs, the largest |difference| divided by the output's largest magnitude.

    Silenced: their slices of every parameter and of every value in between are zero, and what runs over channels
    (LayerNorm, RMSNorm, GroupNorm, mean, variance …) runs over those that stay. The graph's constants are the uncut
    ones, so the two sides share the labels but not the arithmetic of the cut. Infinite when outputs differ in shape or
    are not finite on one side only.
    """
    before.eval()
    after.eval()
    plan = Cut(channels, removed)
    with torch.no_grad():
        expected = _tensors(MaskedNetwork(before, plan).run(*inputs))
        got = _tensors(after(*inputs))
    if len(expected) != len(got):
        return math.inf
    return max((_difference(first, second) for first, second in zip(expected, got, strict=True)), default=0.0)


def prove(
    before: fx.GraphModule,
    channels: Channels,
    removed: Sequence[int],
    after: fx.GraphModule,
    inputs: tuple[Tensor, ...],
) -> float:
    """`mask_check` that is infinite when the cut network does not run, or when it gives these samples otherwise in a
    larger batch.

    Some networks magnify rounding (one without normalisation layers was 2e-3 off its own result in double precision).
    So what fails in single precision is checked again in double, which tells rounding from a mistake.
    """
    if not _same_in_a_larger_batch(before, after, inputs):
        return math.inf
    found = _checked(before, channels, removed, after, inputs)
    if found <= TOLERANCE:
        return found
    doubled = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    pair = copy.deepcopy(before).double(), copy.deepcopy(after).double()
    return min(found, _checked(pair[0], channels, removed, pair[1], doubled))


def _same_in_a_larger_batch(before: fx.GraphModule, after: fx.GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the cut network is as true to its samples with one sample more as the uncut one is: constants that a cut
    writes down must not hold for one batch size only."""
    try:
        allowed, shapes = _change_in_a_larger_batch(before, inputs)
    except (RuntimeError, ValueError, IndexError):
        return True  # only runs with this batch, as it did before the cut
    try:
        change, same_shapes = _change_in_a_larger_batch(after, inputs)
    except (RuntimeError, ValueError, IndexError):
        return False
    return shapes == same_shapes and change <= max(_BATCH_TOLERANCE, 10 * allowed)


def _change_in_a_larger_batch(
    network: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[float, list[tuple[int, ...]]]:
    """How far the outputs for `inputs` are from those of the same samples among one more, and the shapes of these."""
    network.eval()
    larger = tuple(torch.cat([value, value[:1]]) if value.dim() else value for value in inputs)
    with torch.no_grad():
        alone, among = _tensors(network(*inputs)), _tensors(network(*larger))
    # What does not grow with the batch mixes samples and may change.
    grown = [(a, b[: len(a)]) for a, b in zip(alone, among, strict=True) if a.dim() and b.shape[0] > a.shape[0]]
    return max((_difference(a, b) for a, b in grown), default=0.0), [tuple(b.shape) for b in among]


def _checked(
    before: fx.GraphModule,
    channels: Channels,
    removed: Sequence[int],
    after: fx.GraphModule,
    inputs: tuple[Tensor, ...],
) -> float:
    try:
        return mask_check(before, channels, removed, after, inputs)
    except (RuntimeError, ValueError, IndexError):
        return math.inf


def _difference(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else math.inf
    expected, got = expected.double(), got.double()
    if not torch.equal(expected.isfinite(), got.isfinite()):
        return math.inf
    scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    largest = float((expected - got).nan_to_num(0.0, 0.0, 0.0).abs().max())
    if math.isnan(largest) or not scale:
        return 0.0 if largest == 0 else math.inf
    return largest / scale


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


class MaskedNetwork(fx.Interpreter):
    """Runs an uncut network with the units that `plan` removes silenced. Weights are, while their node runs."""

    def __init__(self, graph: fx.GraphModule, plan: Cut) -> None:
        super().__init__(graph)
        self.plan = plan

    def run_node(self, n: fx.Node) -> Any:
        over_channels = self._over_channels(n)
        with self._silenced_weights(n):
            result = over_channels(n) if over_channels is not None else super().run_node(n)
            if n.op == "get_attr" and isinstance(result, Tensor):
                result = result.clone()
        if n.op in ("call_function", "call_module"):
            self._silence_result(n, result, self.plan.value(n))
        return result

    @contextmanager
    def _silenced_weights(self, node: fx.Node) -> Iterator[None]:
        """What a node owns, silenced and then as it was. One node at a time, so that little is kept meanwhile."""
        kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
        owns = node.op in ("get_attr", "call_module")
        for name, axes in self.plan.channels.parameters.items() if owns else ():
            if name == node.target or (node.op == "call_module" and name.startswith(f"{node.target}.")):
                tensor = tensor_named(self.module, name).detach()
                for dim, lost in _lost(axes, self.plan):
                    places = lost.to(tensor.device)
                    kept.append((tensor, dim, places, tensor.index_select(dim, places)))
                    tensor.index_fill_(dim, places, 0)
        try:
            yield
        finally:
            for tensor, dim, places, values in reversed(kept):
                tensor.index_copy_(dim, places, values)

    def _silence_result(self, node: fx.Node, result: Any, value: Value) -> None:
        if isinstance(value, tuple):
            for item, part in zip(result, value, strict=True):
                self._silence_result(node, item, part)
        elif value is not None and isinstance(result, Tensor) and not self._is_view(node, result):
            _silence(result, value, self.plan)

    def _is_view(self, node: fx.Node, result: Tensor) -> bool:
        """A view shows values that were silenced where they were made; in-place operators are no views."""
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            return False
        storage = result.untyped_storage().data_ptr()
        sources = (_tensors(self.env.get(source)) for source in node.all_input_nodes)
        return any(tensor.untyped_storage().data_ptr() == storage for found in sources for tensor in found)

    def _over_channels(self, node: fx.Node) -> Callable[[fx.Node], Any] | None:
        """How to run `node` when it runs over channels of which some go."""
        if not any(self._shrinks(source) for source in node.all_input_nodes):
            return None
        if node.op == "call_module":
            kind = type(self.module.get_submodule(str(node.target)))
            return self._module if kind in _MODULES else None
        if isinstance(node.target, torch._ops.OpOverload) and (
            node.target.overloadpacket.__name__ in _OPERATORS or only_values_used(node)
        ):
            return self._operator
        return None

    def _shrinks(self, node: fx.Node) -> bool:
        value = self.plan.value(node)
        return isinstance(value, list) and any(self.plan.shrinks(axis) for axis in value)

    def _module(self, node: fx.Node) -> Tensor:
        module: Any = self.module.get_submodule(str(node.target))
        source = node.all_input_nodes[0]
        weight, bias = (
            None if getattr(module, leaf, None) is None else self._kept_parameter(f"{node.target}.{leaf}")
            for leaf in ("weight", "bias")
        )
        values = self._kept(source)
        if isinstance(module, nn.GroupNorm):
            groups = values.shape[1] if module.num_groups == module.num_channels else module.num_groups
            result = F.group_norm(values, groups, weight, bias, module.eps)
        else:
            shape = values.shape[-len(module.normalized_shape) :]
            if isinstance(module, nn.LayerNorm):
                result = F.layer_norm(values, shape, weight, bias, module.eps)
            else:
                result = F.rms_norm(values, shape, weight, module.eps)
        return self._full(result, self.plan.axes(node))

    def _operator(self, node: fx.Node) -> Any:
        arguments = arguments_of(node)
        call = fx.Graph()
        copy = call.node_copy(node, lambda source: call.placeholder(source.name))
        source: fx.Node = arguments["input" if "input" in arguments else "self"]
        kept = self._kept(source)
        if "normalized_shape" in arguments:
            set_argument(copy, "normalized_shape", list(kept.shape[-len(arguments["normalized_shape"]) :]))
        if "num_groups" in arguments and arguments["num_groups"] == self.env[source].shape[1]:
            set_argument(copy, "num_groups", kept.shape[1])
        args, kwargs = fx.node.map_arg((copy.args, copy.kwargs), lambda place: self._kept_named(node, place.name))
        return self._restored(node, copy.target(*args, **kwargs))  # type: ignore[operator]

    def _kept_named(self, node: fx.Node, name: str) -> Any:
        source = next(source for source in node.all_input_nodes if source.name == name)
        return self._kept(source) if isinstance(self.env[source], Tensor) else self.env[source]

    def _kept(self, node: fx.Node) -> Tensor:
        tensor: Tensor = self.env[node]
        return _select(tensor, self.plan.axes(node), self.plan)

    def _kept_parameter(self, name: str) -> Tensor:
        axes = self.plan.channels.parameters[name]
        return _select(tensor_named(self.module, name), axes, self.plan)

    def _restored(self, node: fx.Node, result: Any) -> Any:
        """Full size again, zeros where units went."""
        value = self.plan.value(node)
        if isinstance(value, tuple):
            return tuple(self._full(item, part) for item, part in zip(result, value, strict=True))
        return self._full(result, value)

    def _full(self, result: Tensor, axes: Value) -> Tensor:
        for dim, axis in enumerate(axes if isinstance(axes, list) else []):
            if (kept := self.plan.kept(axis)) is not None and axis is not None:
                sizes = (*result.shape[:dim], axis.size, *result.shape[dim + 1 :])
                result = result.new_zeros(sizes).index_copy_(dim, kept.to(result.device), result)
        return result


def _silence(tensor: Tensor, axes: Axes, plan: Cut) -> None:
    for dim, lost in _lost(axes, plan):
        tensor.detach().index_fill_(dim, lost.to(tensor.device), 0)


def _lost(axes: Axes, plan: Cut) -> Iterator[tuple[int, Tensor]]:
    """Dimensions that shrink, and the positions that go."""
    for dim, axis in enumerate(axes):
        if (lost := plan.lost(axis)) is not None:
            yield dim, lost


def _select(tensor: Tensor, axes: Axes, plan: Cut) -> Tensor:
    for dim, axis in enumerate(axes):
        if (kept := plan.kept(axis)) is not None:
            tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor


_MODULES = frozenset({nn.LayerNorm, nn.RMSNorm, nn.GroupNorm})
_OPERATORS = frozenset(
    {"layer_norm", "rms_norm", "group_norm", "mean", "sum", "prod", "amax", "amin", "all", "std", "var", "logsumexp"}
    | {"linalg_vector_norm", "norm", "batch_norm", "instance_norm", "std_mean", "var_mean"}
    | {"any", "frobenius_norm", "nanmean", "nansum"}
    | {"softmax", "log_softmax", "_softmax", "_log_softmax"}
)
