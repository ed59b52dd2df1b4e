"""Where channels split into heads and features: what shrinks when one of the two cannot."""

# mypy: disable-error-code="no-any-return, operator, index, arg-type"
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.graph.cuts import halve_and_prove
from tests.engine.graph.test_traps import TOKENS, Net
from tests.engine.subjects import lifted
from tests.networks import randomised


def _heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 6, 4, 8).transpose(1, 2)


def _projected(**more: nn.Module | Tensor) -> dict[str, nn.Module | Tensor]:
    return {name: nn.Linear(16, 32) for name in "qkv"} | {"head": nn.Linear(32, 3)} | more


def _slopes(net: Net, x: Tensor) -> Tensor:
    """Attention as BLOOM has it: a slope for each head that the heads are multiplied with in the batch."""
    bias = net.slopes.repeat(x.shape[0])[:, None, None] * torch.arange(6.0)
    q, k, v = (_heads(layer(x)).reshape(-1, 6, 8) for layer in (net.q, net.k, net.v))
    y = torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2)), -1) @ v
    return net.head(y.view(-1, 4, 6, 8).transpose(1, 2).flatten(2).mean(1))


def _counted(net: Net, x: Tensor) -> Tensor:
    """Every head by itself, so that their number is written into the network."""
    q, k, v = (_heads(layer(x)) for layer in (net.q, net.k, net.v))
    parts = [F.scaled_dot_product_attention(q[:, i], k[:, i], v[:, i]) for i in range(4)]
    return net.head(torch.cat(parts, -1).mean(1))


def _grouped(net: Net, x: Tensor) -> Tensor:
    """Projections with as many groups as there are heads tie the heads to each other."""
    q, k, v = (layer(x.transpose(1, 2)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v))
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _rotary(net: Net, x: Tensor) -> Tensor:
    turn = torch.outer(torch.arange(6.0), net.frequencies)
    turn = torch.cat([turn, turn], -1)

    def rotated(y: Tensor) -> Tensor:
        first, second = y.chunk(2, -1)
        return y * turn.cos() + torch.cat([-second, first], -1) * turn.sin()

    y = F.scaled_dot_product_attention(rotated(_heads(net.q(x))), rotated(_heads(net.k(x))), _heads(net.v(x)))
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _units(module: nn.Module, folder: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    subject = lifted(randomised(module), (TOKENS,), folder)
    halved = halve_and_prove(subject.graph, (TOKENS,))
    return {group.id: (len(group.units), group.widths) for group in halved.channels.groups}


def test_features_shrink_where_heads_are_taken_one_by_one(tmp_path: Path) -> None:
    assert _units(Net(_counted, **_projected()), tmp_path) == {"q": (8, (4,)), "v": (8, (4,))}


def test_features_shrink_where_a_repeated_constant_counts_the_heads(tmp_path: Path) -> None:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    assert _units(Net(_slopes, **_projected(slopes=slopes)), tmp_path) == {"q": (8, (4,)), "v": (8, (4,))}


def test_features_shrink_where_heads_only_go_together(tmp_path: Path) -> None:
    grouped = {name: nn.Conv1d(16, 32, 1, groups=4) for name in "qkv"}
    assert _units(Net(_grouped, **_projected(**grouped)), tmp_path) == {"q": (8, (4,)), "v": (8, (4,))}


def test_frequencies_of_rotary_positions_are_no_channels(tmp_path: Path) -> None:
    frequencies = torch.tensor([1.0, 0.5, 0.25, 0.125])
    assert _units(Net(_rotary, **_projected(frequencies=frequencies)), tmp_path) == {"q": (4, (8,))}
