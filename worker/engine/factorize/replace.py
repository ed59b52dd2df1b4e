"""Putting layers in the place of one: `conv1` becomes `conv1.0`, `conv1.1` …, real modules that later steps know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from models.factors import Way
from worker.engine.subject import Subject

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def replace(subject: Subject, name: str, way: Way, weights: Sequence[Tensor], core: int) -> list[str]:
    """Put layers with these weights, run one after the other, in the place of the layer `name` of `subject.graph`; the
    one at `core` moves as that did, the last has its bias. Their names come back."""
    graph = subject.graph
    layer = graph.get_submodule(name)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    made = _layers(layer, way, [part.to(weight) for part in weights], core)
    for module in made:
        module.train(layer.training)
    container = nn.Module()
    container.train(layer.training)
    container._modules.update(layer._modules)
    names = []
    for module in made:
        leaf = next(
            str(number) for number in range(len(container._modules) + 1) if str(number) not in container._modules
        )
        container._modules[leaf] = module
        names.append(f"{name}.{leaf}")
    path, _, leaf = name.rpartition(".")
    graph.get_submodule(path)._modules[leaf] = container
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == name:
            _chain(graph.graph, node, names)
    graph.graph.lint()
    graph.recompile()
    _rename(subject, name, names, has_bias=made[-1].bias is not None)
    return names


def _chain(graph: fx.Graph, node: fx.Node, names: Sequence[str]) -> None:
    value = node
    with graph.inserting_before(node):
        for place, name in enumerate(names):
            arguments, keywords = (node.args, node.kwargs) if place == 0 else ((value,), {})
            value = graph.call_module(name, arguments, keywords)
            value.meta = {key: node.meta[key] for key in ("layer",) if key in node.meta}
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _rename(subject: Subject, name: str, names: Sequence[str], *, has_bias: bool) -> None:
    """The bias has another name; a weight of the file that is a product now has none."""
    given = {there: here for here, there in subject.renames.items()}
    weight, bias = f"{name}.weight", f"{name}.bias"
    subject.renames.pop(given.get(weight, weight), None)
    if has_bias:
        subject.renames[given.get(bias, bias)] = f"{names[-1]}.bias"


def _layers(layer: nn.Module, way: Way, weights: Sequence[Tensor], core: int) -> list[nn.Module]:
    bias = layer.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    made: list[nn.Module] = []
    for place, weight in enumerate(weights):
        own = bias if place == len(weights) - 1 else None
        if isinstance(layer, nn.Linear):
            made.append(_linear(weight, own))
        else:
            geometry = _spatial(layer, place) if way == "spatial" else _geometry(layer) if place == core else {}
            if way == "cp" and place == core:
                geometry["groups"] = len(weight)
            made.append(_convolution(weight, own, geometry, transposed=bool(geometry and layer.transposed)))
    return made


def _geometry(layer: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", *(("output_padding",) if layer.transposed else ()))
    return {name: getattr(layer, name) for name in names}


def _spatial(layer: Any, place: int) -> dict[str, Any]:
    """Along the rows, then along the columns; nothing moves along the other dimension."""
    found = {}
    for name, still in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(layer, name)
        found[name] = value if isinstance(value, str) else (value[0], still) if place == 0 else (still, value[1])
    return found


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _held(module, weight, bias)  # type: ignore[return-value]


def _convolution(weight: Tensor, bias: nn.Parameter | None, geometry: dict[str, Any], *, transposed: bool) -> nn.Module:
    dimensions = weight.dim() - 2
    kernel = tuple(weight.shape[2:])
    first, second = weight.shape[:2]
    kind = _TRANSPOSED[dimensions] if transposed else _CONVOLUTIONS[dimensions]
    inner, outer = (first, second) if transposed else (second * geometry.get("groups", 1), first)
    return _held(kind(inner, outer, kernel, bias=bias is not None, device="meta", **geometry), weight, bias)


def _held(module: nn.Module, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    module.register_parameter("weight", nn.Parameter(weight.contiguous()))
    if bias is not None:
        module.register_parameter("bias", bias)
    return module
