"""Small networks whose scores are known, and a prune step on them."""

# mypy: disable-error-code="index, operator"
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.spec import PruneStep
from tests.engine.subjects import lifted, run_in
from worker.engine.prune.step import run
from worker.engine.subject import Subject


def prune(subject: Subject, folder: Path, **settings: Any) -> dict[str, Any]:
    """The step's details."""
    step = PruneStep.model_validate({"step": "prune", **settings})
    return run(subject, step, run_in(folder, step))


def chain(folder: Path, *widths: int, scales: Sequence[float] = ()) -> Subject:
    """Linear layers `0`, `2`, …, each followed by a ReLU, two numbers wide at both ends. Every weight that hidden unit
    k of layer i has or meets is (k + 1) times `scales[i]` (one without): unit 0 matters least."""
    sizes = [2, *widths, 2]
    factors = [*scales, *[1.0] * (len(sizes) - len(scales))]
    layers: list[nn.Module] = []
    for index, (inner, outer) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inner, outer, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
            if index < len(widths):
                layer.weight *= factors[index] * torch.arange(1.0, outer + 1)[:, None]
            if index > 0:
                layer.weight *= factors[index - 1] * torch.arange(1.0, inner + 1)[None, :]
        layers += [layer, nn.ReLU()]
    return lifted(nn.Sequential(*layers[:-1]), (torch.zeros(2, 2),), folder)


def widths_of(subject: Subject) -> list[int]:
    """How many hidden units each layer of `chain` has left."""
    layers = [module for module in subject.graph.modules() if isinstance(module, nn.Linear)]
    return [layer.out_features for layer in layers[:-1]]
