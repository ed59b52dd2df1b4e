"""Distillation inside the network: what layers give is drawn to what the teacher's layers of the same name give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.spec import Feature
from worker.engine.measure.metrics import as_outputs
from worker.engine.subject import BESIDE


class Projection(nn.Module):
    """A linear map of `width` values along `dim` to as many as the teacher has (FitNets: Romero et al., 2015, where it
    is a convolution), drawn from a generator; it is no part of the network."""

    def __init__(self, width: int, wanted: int, dim: int, draw: torch.Generator) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.randn(wanted, width, generator=draw) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(wanted))

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value.movedim(self.dim, -1), self.weight, self.bias).movedim(-1, self.dim)


@dataclass
class Features:
    """The layers to learn from: `scales` has the variance of what each gives in the teacher, once for each time that it
    runs, `weights` its share. Inside `attached` layers remember what they give; the projections are then parameters of
    the network, under names that begin with `BESIDE`, so that they train with it."""

    network: fx.GraphModule
    teacher: fx.GraphModule
    weights: Mapping[str, float]
    scales: Mapping[str, list[float]]
    projections: Mapping[str, list[Projection | None]]
    _own: dict[str, list[Tensor]] = field(default_factory=dict)
    _wanted: dict[str, list[Tensor]] = field(default_factory=dict)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        learnt = [each for row in self.projections.values() for each in row if each is not None]
        self.network.add_module(BESIDE, nn.ModuleList(learnt))
        with (
            _remembering(self.network, self.weights, self._own),
            _remembering(self.teacher, self.weights, self._wanted),
        ):
            try:
                yield
            finally:
                delattr(self.network, BESIDE)

    def forget(self) -> None:
        """Before both networks run on a batch."""
        self._own.clear()
        self._wanted.clear()

    def loss(self) -> Tensor:
        """Of the batch that both networks ran on since `forget`: the sum over layers of weight times mean squared
        error, divided by the variance of the teacher's values."""
        parts = []
        for name, weight in self.weights.items():
            rows = zip(self._own[name], self._wanted[name], self.scales[name], self.projections[name], strict=True)
            for own, wanted, scale, projection in rows:
                given = own.float() if projection is None else projection(own.float())
                parts.append(weight * F.mse_loss(given, wanted.float()) / scale / len(self.scales[name]))
        return torch.stack(parts).sum()


def features_for(
    network: fx.GraphModule,
    teacher: fx.GraphModule,
    choices: Sequence[Feature],
    inputs: tuple[Tensor, ...],
    seed: int,
    where: str,
) -> tuple[Features, list[str]]:
    """Both networks run once on `inputs`, in eval mode. Layers that a cut has taken out of the network come back.

    Raises Failure: INVALID_SPEC when a layer's values differ from the teacher's in more than one dimension, or nothing
    is left to learn from; `where` points to the choices.
    """
    in_teacher, in_network = _layers(teacher), _layers(network)
    weights: dict[str, float] = {}
    for name in in_teacher:
        matched = [choice.weight for choice in choices if fnmatchcase(name, choice.layer)]
        if matched:
            weights[name] = matched[0]
    gone = [name for name in weights if name not in in_network]
    weights = {name: weight for name, weight in weights.items() if name in in_network}
    own: dict[str, list[Tensor]] = {}
    wanted: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _remembering(network, weights, own), _remembering(teacher, weights, wanted):
        for graph in (network, teacher):
            graph.eval()
            graph(*inputs)
    weights = {name: weight for name, weight in weights.items() if len(own[name]) == len(wanted[name])}
    draw = torch.Generator().manual_seed(seed)
    scales, projections = {}, {}
    for name in weights:
        scales[name] = [_variance(value) for value in wanted[name]]
        pairs = zip(own[name], wanted[name], strict=True)
        projections[name] = [_projection(a, b, draw, name, where) for a, b in pairs]
    if not weights:
        raise Failure(
            Code.INVALID_SPEC,
            f"No layer of {', '.join(choice.layer for choice in choices)} is in both networks and gives floating-point "
            "values: choose others.",
            where=where,
        )
    return Features(network, teacher, weights, scales, projections), gone


def _projection(own: Tensor, wanted: Tensor, draw: torch.Generator, name: str, where: str) -> Projection | None:
    """None where the shapes are equal."""
    differing = [dim for dim, (a, b) in enumerate(zip(own.shape, wanted.shape, strict=False)) if a != b]
    if own.dim() == wanted.dim() and not differing:
        return None
    if own.dim() != wanted.dim() or len(differing) > 1 or differing == [0]:
        raise Failure(
            Code.INVALID_SPEC,
            f"The layer {name!r} gives {['N', *own.shape[1:]]} and the teacher's {['N', *wanted.shape[1:]]}: only one "
            "dimension may differ. Choose another layer.",
            where=where,
        )
    (dim,) = differing
    return Projection(own.shape[dim], wanted.shape[dim], dim, draw).to(own.device)


def _layers(graph: fx.GraphModule) -> list[str]:
    """Modules with parameters, in the order they run first."""
    called = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return [name for name in called if next(graph.get_submodule(name).parameters(), None) is not None]


@contextlib.contextmanager
def _remembering(graph: fx.GraphModule, names: Mapping[str, Any], found: dict[str, list[Tensor]]) -> Iterator[None]:
    """Inside the block `found` has, under the name of a layer, what it gave each time it ran (the first tensor)."""

    def hook(name: str) -> Any:
        def remember(module: nn.Module, arguments: Any, result: Any) -> None:
            value = as_outputs(result)[0]
            if value.is_floating_point():
                found.setdefault(name, []).append(value.clone())  # what follows may write into it

        return remember

    handles = [graph.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _variance(values: Tensor) -> float:
    """Positive, also of values that are all alike."""
    variance = float(values.float().var(correction=0))
    return variance if variance > 0.0 else float(values.float().square().mean()) or 1.0
