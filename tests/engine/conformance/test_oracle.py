"""The second judge must agree with a right cut, and see a wrong one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.conformance.conform import difference
from tests.engine.conformance.oracle import kept_in_original, masked_original
from tests.engine.graph.cuts import half_of
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.channels import analyse
from worker.engine.graph.cut import Cut, cut

TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class RootMeanSquareNorm(nn.Module):
    """Zhang and Sennrich, 2019, written as arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class NormalizedHeads(nn.Module):
    """Queries normalised head by head: whole heads can go, and features of what the norm gives, not what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = RootMeanSquareNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = torch.softmax(self.norm(q) @ self.norm(k).transpose(-1, -2), -1) @ v
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result


def _tokens(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 24), norm, nn.GELU(), nn.Linear(24, 3))


def _image(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 24, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layer_norm": (lambda: _tokens(nn.LayerNorm(24)), TOKENS),
    "layer_norm_without_weights": (lambda: _tokens(nn.LayerNorm(24, elementwise_affine=False)), TOKENS),
    "rms_norm": (lambda: _tokens(nn.RMSNorm(24)), TOKENS),
    "rms_norm_written_as_arithmetic": (lambda: _tokens(RootMeanSquareNorm(24)), TOKENS),
    "rms_norm_of_heads": (NormalizedHeads, TOKENS),
    "group_norm": (lambda: _image(nn.GroupNorm(4, 24)), IMAGES),
    "group_norm_of_all": (lambda: _image(nn.GroupNorm(1, 24)), IMAGES),
}


@pytest.mark.parametrize("name", CASES)
def test_a_right_cut_is_the_original_without_what_was_removed_and_a_wrong_one_is_not(name: str, tmp_path: Path) -> None:
    make, x = CASES[name]
    module = randomised(make())
    scaled_alone = ("norm",) if isinstance(module, NormalizedHeads) else ()
    graph = lifted(module, (x,), tmp_path).graph
    channels = analyse(graph, (x,))
    removed = half_of(channels)
    right, wrong = (kept_in_original(module, channels, Cut(channels, units), {}) for units in (removed, removed[1:]))
    before = copy.deepcopy(module)
    cut(channels, removed)
    with torch.no_grad():
        assert difference(masked_original(module, right, scaled_alone)(x), graph(x)) < 1e-5
        assert difference(masked_original(module, wrong, scaled_alone)(x), graph(x)) > 1e-3
        assert difference(module(x), graph(x)) > 1e-3
        assert torch.equal(before(x), module(x))
