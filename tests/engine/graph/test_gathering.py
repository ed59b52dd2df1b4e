"""Operators that read from or write to places, look through windows, or run one step of a recurrent cell."""

# mypy: disable-error-code="no-any-return, operator, index, arg-type, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.graph.cuts import halve_and_prove
from tests.engine.graph.test_traps import IMAGE, TOKENS, Net, conv, head
from tests.engine.subjects import lifted
from tests.networks import randomised


def _gathered(net: Net, x: Tensor) -> Tensor:
    """The three tokens of the largest score, as networks that drop tokens do."""
    y = net.a(x)
    places = net.score(x).squeeze(-1).topk(3, dim=1).indices
    return net.head(y.gather(1, places.unsqueeze(-1).expand(-1, -1, y.shape[-1])).mean(1)) + net.score(x).mean(1)


def _taken_along(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(torch.take_along_dim(y, y.argsort(1), 1)[:, :2].mean(1))


def _scattered(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    places = net.score(x).squeeze(-1).argsort(1).unsqueeze(-1).expand_as(y)
    return net.head(torch.zeros_like(y).scatter(1, places, y).cumsum(1).mean(1)) + net.score(x).mean(1)


def _added_at_places(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    places = net.score(x).squeeze(-1).argsort(1).unsqueeze(-1).expand_as(y) // 2
    return net.head(torch.zeros_like(y).scatter_add_(1, places, y).square().mean(1)) + net.score(x).mean(1)


def _put(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y.index_put((torch.arange(x.shape[0])[:, None], net.places), net.b(x)[:, :2])
    return net.head(y.square().mean(1))


def _put_one(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).clone()
    y[:, net.places[0]] = 0.5
    return net.head(y.square().mean(1))


def _filled_slices(net: Net, x: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], 6, 24)
    y[:, :4] = net.a(x)[:, :4]
    y[:, 4:] = net.b(x)[:, 4:]
    return net.head(y.square().mean(1))


def _slice_replaced(net: Net, x: Tensor) -> Tensor:
    y = torch.slice_scatter(net.a(x), net.b(x), 2, 8, 24)
    return net.head(torch.select_scatter(y, net.a(x)[:, 1], 1, 0).square().mean(1))


def _columns(net: Net, x: Tensor) -> Tensor:
    """Convolution written as a product with columns, and back to an image."""
    y = F.unfold(net.a(x), 3, padding=1)
    y = F.fold(net.mix(y.transpose(1, 2)).transpose(1, 2), (8, 8), 3, padding=1)
    return net.head(net.b(y))


def _windows(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x).unfold(1, 3, 2).amax(-1).mean(1))


def _sampled(net: Net, x: Tensor) -> Tensor:
    grid = F.affine_grid(net.place(x.mean((2, 3))).view(-1, 2, 3), [x.shape[0], 16, 5, 5], align_corners=False)
    return net.head(F.grid_sample(net.a(x), grid, align_corners=False))


def _frequencies(net: Net, x: Tensor) -> Tensor:
    """A filter in the frequencies of the image (Rao et al., 2021)."""
    y = torch.fft.rfft2(net.a(x), norm="ortho") * torch.view_as_complex(net.filter)
    return net.head(torch.fft.irfft2(y, s=(8, 8), norm="ortho"))


def _rotated(net: Net, x: Tensor) -> Tensor:
    """Positions as rotations of pairs of channels, in complex numbers."""
    q, k = (layer(x).view(x.shape[0], 6, 4, 4, 2) for layer in (net.a, net.b))
    turn = torch.polar(torch.ones(6, 4), net.angle).unsqueeze(1)
    q, k = (torch.view_as_real(torch.view_as_complex(y) * turn).flatten(3).transpose(1, 2) for y in (q, k))
    return net.head(F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2).mean(1))


def _pairs(net: Net, x: Tensor) -> Tensor:
    y = torch.cdist(net.a(x), net.b(x)).softmax(-1)
    return net.head((y @ net.a(x)).mean(1))


def _likeness(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(y * F.cosine_similarity(y, net.b(x), -1).unsqueeze(-1)).mean(1)


def _bilinear(net: Net, x: Tensor) -> Tensor:
    return net.head(net.mix(net.a(x), net.b(x)).mean(1))


def _contracted(net: Net, x: Tensor) -> Tensor:
    y = torch.tensordot(net.a(x), net.mix, dims=([2], [0]))
    y = y + torch.inner(net.a(x), net.inner)
    return net.head((y * torch.mv(net.mix.T, net.vector)).mean(1))


def _broadcast(net: Net, x: Tensor) -> Tensor:
    first, second = torch.broadcast_tensors(net.a(x), net.b(x).mean(1, keepdim=True))
    return net.head((first * second.broadcast_to(x.shape[0], 6, 24)).mean(1))


def _moved(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).movedim((2, 1), (1, 2)).mT
    return net.head(
        (y @ net.mix.T).mean(1) + torch.diagonal(y.transpose(1, 2)[:, :6, :6], dim1=1, dim2=2).sum(-1)[:, None]
    )


def _two_moments(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    variance, mean = torch.var_mean(y, 1, keepdim=True)
    return net.head(((y - mean) / (variance + 0.1).sqrt() + y.std(1, keepdim=True)).square().mean(1))


class Cells(nn.Module):
    """A recurrent cell stepped over time by hand."""

    def __init__(self, kind: type[nn.LSTMCell | nn.GRUCell | nn.RNNCell], **settings: object) -> None:
        super().__init__()
        self.cell = kind(16, 24, **settings)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 24)
        other = x.new_zeros(x.shape[0], 24)
        for step in range(3):
            if isinstance(self.cell, nn.LSTMCell):
                state, other = self.cell(x[:, step], (state, other))
            else:
                state = self.cell(x[:, step], state)
        return self.head(state)


def _two(**more: nn.Module | nn.Parameter | Tensor) -> dict[str, nn.Module | nn.Parameter | Tensor]:
    return {"a": nn.Linear(16, 24), "b": nn.Linear(16, 24), "head": nn.Linear(24, 3), **more}


def _one(**more: nn.Module | nn.Parameter | Tensor) -> dict[str, nn.Module | nn.Parameter | Tensor]:
    return {"a": nn.Linear(16, 24), "head": nn.Linear(24, 3), **more}


def _raw(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*sizes))


PLACES = torch.tensor([[1, 4]])

CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "gather": (lambda: Net(_gathered, **_one(score=nn.Linear(16, 1))), TOKENS, {"a": 24}),
    "take_along_dim": (lambda: Net(_taken_along, **_one()), TOKENS, {"a": 24}),
    "scatter": (lambda: Net(_scattered, **_one(score=nn.Linear(16, 1))), TOKENS, {"a": 24}),
    "scatter_add": (lambda: Net(_added_at_places, **_one(score=nn.Linear(16, 1))), TOKENS, {"a": 24}),
    "index_put": (lambda: Net(_put, **_two(places=PLACES)), TOKENS, {"a": 24}),
    "index_put_of_a_number": (lambda: Net(_put_one, **_one(places=PLACES)), TOKENS, {"a": 24}),
    "filled_slices": (lambda: Net(_filled_slices, **_two()), TOKENS, {"a": 24}),
    "slice_scatter": (
        lambda: Net(_slice_replaced, a=nn.Linear(16, 24), b=nn.Linear(16, 16), head=nn.Linear(24, 3)),
        TOKENS,
        {"a": 8, "a:2": 16},
    ),
    "columns": (
        lambda: Net(_columns, a=conv(3, 8), mix=nn.Linear(72, 108), b=conv(12, 8), head=head(8)),
        IMAGE,
        {"a": 8, "mix": 12, "b": 8},
    ),
    "windows": (lambda: Net(_windows, **_one()), TOKENS, {"a": 24}),
    "grid": (lambda: Net(_sampled, a=conv(3, 16), place=nn.Linear(3, 6), head=head(16)), IMAGE, {"a": 16}),
    "frequencies": (
        lambda: Net(_frequencies, a=conv(3, 16), filter=_raw(16, 8, 5, 2), head=head(16)),
        IMAGE,
        {"a": 16},
    ),
    "complex_rotation": (
        lambda: Net(_rotated, a=nn.Linear(16, 32), b=nn.Linear(16, 32), angle=torch.rand(6, 4), head=nn.Linear(32, 3)),
        TOKENS,
        {"a": 4},
    ),
    "distances": (lambda: Net(_pairs, **_two()), TOKENS, {"a": 24}),
    "cosine_similarity": (lambda: Net(_likeness, **_two()), TOKENS, {"a": 24}),
    "bilinear": (
        lambda: Net(_bilinear, **{**_two(), "b": nn.Linear(16, 20), "mix": nn.Bilinear(24, 20, 24)}),
        TOKENS,
        {"a": 24, "b": 20, "mix.weight": 24},
    ),
    "contractions": (
        lambda: Net(_contracted, **_two(mix=_raw(24, 24), inner=_raw(24, 24), vector=_raw(24))),
        TOKENS,
        {"a": 24, "mix": 24},
    ),
    "broadcast": (lambda: Net(_broadcast, **_two()), TOKENS, {"a": 24}),
    "moved": (
        lambda: Net(_moved, a=nn.Linear(16, 24), mix=_raw(24, 24), head=nn.Linear(24, 3)),
        TOKENS,
        {"mix": 24, "a": 18},
    ),
    "two_moments": (lambda: Net(_two_moments, **_one()), TOKENS, {"a": 24}),
    "lstm_cell": (lambda: Cells(nn.LSTMCell), TOKENS, {"cell.weight_ih": 24}),
    "gru_cell": (lambda: Cells(nn.GRUCell, bias=False), TOKENS, {"cell.weight_ih": 24}),
    "rnn_cell": (lambda: Cells(nn.RNNCell, nonlinearity="relu"), TOKENS, {"cell.weight_ih": 24}),
}


@pytest.mark.parametrize("name", CASES)
def test_half_of_every_group_goes_and_the_mask_check_passes(name: str, tmp_path: Path) -> None:
    make, x, units = CASES[name]
    module = randomised(make())
    subject = lifted(module, (x,), tmp_path)
    with torch.no_grad():
        assert torch.equal(module(x), subject.graph(x))
    halved = halve_and_prove(subject.graph, (x,))
    assert {group.id: len(group.units) for group in halved.channels.groups} == units
