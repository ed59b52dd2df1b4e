"""Torch-Pruning (Fang et al., CVPR 2023), used as its documentation says: the peer that our pruning is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

STEPS = 100
"""In how many steps one ranking over the network goes towards its end; it stops where enough is gone."""

BATCH = 16
"""Samples whose losses are differentiated one by one through one graph: each takes as long as all together."""

IMPORTANCE: dict[str, Callable[[], Any]] = {
    "random": tp.importance.RandomImportance,
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "fpgm": tp.importance.FPGMImportance,
    "lamp": tp.importance.LAMPImportance,
    "bn_gamma": tp.importance.BNScaleImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}
"""Their importances by our names, with their defaults."""


def halve(module: nn.Module, inputs: tuple[Tensor, ...], kept: Sequence[str]) -> float:
    """Half of the channels of every group, in place, but for the layers `kept`; the processor time of its analysis."""
    began = time.process_time()
    pruner = _pruner(module, inputs, kept, IMPORTANCE["l2"](), ratio=0.5, whole=False, steps=1)
    seconds = time.process_time() - began
    pruner.step()
    return seconds


def prune(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    kept: Sequence[str],
    criterion: str,
    samples: tuple[Tensor, Tensor],
    enough: Callable[[nn.Module], bool] | None,
) -> None:
    """By one criterion, in place: half of the channels of every group, or by one ranking over the network until
    `enough` are gone, but for the layers `kept`. `samples` are inputs and classes for criteria that need gradients."""
    importance = IMPORTANCE[criterion]()
    _differentiate(module, importance, samples)
    if enough is None:
        _pruner(module, inputs, kept, importance, ratio=0.5, whole=False, steps=1).step()
    else:
        pruner = _pruner(module, inputs, kept, importance, ratio=1.0, whole=True, steps=STEPS)
        while not enough(module) and pruner.current_step < STEPS:
            pruner.step()
    module.zero_grad()


def _pruner(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    kept: Sequence[str],
    importance: Any,
    ratio: float,
    *,
    whole: bool,
    steps: int,
) -> Any:
    layers = dict(module.named_modules())
    return tp.pruner.BasePruner(
        module,
        inputs,
        importance,
        global_pruning=whole,
        pruning_ratio=ratio,
        iterative_steps=steps,
        ignored_layers=[layers[name] for name in kept if name in layers],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


def _differentiate(module: nn.Module, importance: Any, samples: tuple[Tensor, Tensor]) -> None:
    """Gradients as its examples take them: of the mean loss, or for the Hessian of each sample's."""
    x, y = samples
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        for some, classes in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True):
            for loss in nn.functional.cross_entropy(module(some), classes, reduction="none"):
                module.zero_grad()
                loss.backward(retain_graph=True)
                importance.accumulate_grad(module)
    elif isinstance(importance, tp.importance.GroupTaylorImportance):
        module.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
