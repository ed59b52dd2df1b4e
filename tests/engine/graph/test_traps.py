"""Ways in which a network hides what its channels are, each met in a real one."""

# mypy: disable-error-code="no-any-return, operator, index"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.graph.cuts import halve_and_prove
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.channels import Channels, analyse


class Net(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inner: int, outer: int, size: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, size, padding=size // 2, groups=groups)


def head(inner: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 3))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))


def _shuffle(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y.view(y.shape[0], 2, 8, 8, 8).transpose(1, 2).reshape(y.shape[0], 16, 8, 8)
    return net.head(net.b(y))


def _squeeze_excite(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(y * torch.sigmoid(net.up(F.relu(net.down(y.mean((2, 3), keepdim=True))))))


def _chunk_gate(net: Net, x: Tensor) -> Tensor:
    value, gate = net.a(x).chunk(2, 1)
    return net.head(value * torch.sigmoid(gate))


def _slices(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(torch.cat([y[:, :6] * 2, y[:, 6:]], 1))


def _narrow(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(torch.cat([y.narrow(1, 0, 6) * 2, y.narrow(1, 6, 10)], 1))


def _uneven_split(net: Net, x: Tensor) -> Tensor:
    first, second = torch.split(net.a(x), [4, 12], 1)
    return net.head(torch.cat([net.b(first), second], 1))


def _even_split(net: Net, x: Tensor) -> Tensor:
    return net.head(torch.stack(torch.split(net.a(x), 4, 1)).sum(0))


def _padded_shortcut(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(net.b(y) + F.pad(y, (0, 0, 0, 0, 4, 4)))


def _in_place(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.b(y)
    z.add_(y)
    z.relu_()
    return net.head(z)


def _multihead(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x, x, x, need_weights=False)[0].mean(1))


def _heads(x: Tensor, count: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _attention(net: Net, x: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(_heads(net.q(x), 4), _heads(net.k(x), 4), _heads(net.v(x), 4))
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _grouped_queries(net: Net, x: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(_heads(net.q(x), 8), _heads(net.k(x), 4), _heads(net.v(x), 4), enable_gqa=True)
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _expanded_keys(net: Net, x: Tensor) -> Tensor:
    def repeated(y: Tensor) -> Tensor:
        return y[:, :, None].expand(y.shape[0], 4, 2, 6, 4).reshape(y.shape[0], 8, 6, 4)

    y = F.scaled_dot_product_attention(
        _heads(net.q(x), 8), repeated(_heads(net.k(x), 4)), repeated(_heads(net.v(x), 4))
    )
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _interleaved_keys(net: Net, x: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(
        _heads(net.q(x), 8),
        _heads(net.k(x), 4).repeat_interleave(2, 1),
        _heads(net.v(x), 4).repeat_interleave(2, 1),
    )
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _einsum(net: Net, x: Tensor) -> Tensor:
    return net.head(torch.einsum("bse,ef->bsf", net.a(x), net.mix).mean(1))


def _token(net: Net, x: Tensor) -> Tensor:
    token = net.token.expand(x.shape[0], -1, -1)
    return net.head(torch.cat([token, net.a(x)], 1)[:, 0] + net.a(x).mean(1))


def _wide_vector(net: Net, x: Tensor) -> Tensor:
    return net.head((net.a(x) + net.scale.view(1, 1, 1).expand(1, 1, 20)).mean(1))


def _root_mean_square(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head((net.weight * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).mean(1))


def _relative_position(net: Net, x: Tensor) -> Tensor:
    bias = net.table[net.index.view(-1)].view(6, 6, 4).permute(2, 0, 1)
    y = F.scaled_dot_product_attention(
        _heads(net.q(x), 4), _heads(net.k(x), 4), _heads(net.v(x), 4), attn_mask=bias.unsqueeze(0)
    )
    return net.head(y.transpose(1, 2).flatten(2).mean(1))


def _mixer(net: Net, x: Tensor) -> Tensor:
    y = x + net.tokens2(F.gelu(net.tokens1(x.transpose(1, 2)))).transpose(1, 2)
    return net.head(net.channels2(F.gelu(net.channels1(y))).mean(1))


class StandardisedConv(nn.Conv2d):
    """Weights with mean zero and variance one over the input channels (Qiao et al., 2019), as timm computes them."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def _projections(**widths: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(16, width) for name, width in widths.items()}


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    "grouped_convolution": (
        lambda: nn.Sequential(conv(3, 16), conv(16, 24, 3, groups=4), nn.ReLU(), head(24)),
        IMAGE,
        {"0", "1"},
    ),
    "depthwise_with_a_multiplier": (
        lambda: nn.Sequential(conv(3, 8), conv(8, 24, 3, groups=8), nn.ReLU(), head(24)),
        IMAGE,
        {"0"},
    ),
    "grouped_transposed_convolution": (
        lambda: nn.Sequential(conv(3, 16), nn.ConvTranspose2d(16, 24, 2, 2, groups=4), head(24)),
        IMAGE,
        {"0", "1"},
    ),
    "depthwise_transposed_convolution": (
        lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), conv(8, 8), head(8)),
        IMAGE,
        {"0", "2"},
    ),
    "channel_shuffle": (
        lambda: Net(_shuffle, a=conv(3, 16), b=conv(16, 16, 3, groups=2), head=head(16)),
        IMAGE,
        {"a", "b"},
    ),
    "squeeze_excite": (
        lambda: Net(_squeeze_excite, a=conv(3, 16), down=conv(16, 4), up=conv(4, 16), head=head(16)),
        IMAGE,
        {"a", "down"},
    ),
    "chunked_gate": (lambda: Net(_chunk_gate, a=conv(3, 16), head=head(8)), IMAGE, {"a"}),
    "glu": (lambda: nn.Sequential(conv(3, 16), nn.GLU(1), head(8)), IMAGE, {"0"}),
    "slices": (lambda: Net(_slices, a=conv(3, 16), head=head(16)), IMAGE, {"a"}),
    "narrow": (lambda: Net(_narrow, a=conv(3, 16), head=head(16)), IMAGE, {"a"}),
    "uneven_split": (lambda: Net(_uneven_split, a=conv(3, 16), b=conv(4, 4), head=head(16)), IMAGE, {"a", "a:2", "b"}),
    "even_split": (lambda: Net(_even_split, a=conv(3, 16), head=head(4)), IMAGE, {"a"}),
    "padded_shortcut": (lambda: Net(_padded_shortcut, a=conv(3, 8), b=conv(8, 16), head=head(16)), IMAGE, {"a", "b"}),
    "in_place_operators": (lambda: Net(_in_place, a=conv(3, 16), b=conv(16, 16), head=head(16)), IMAGE, {"a"}),
    "flatten_into_linear": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)),
        IMAGE,
        {"0"},
    ),
    "unflatten_from_linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.Unflatten(1, (8, 4, 4)), conv(8, 3, 3)),
        IMAGE,
        {"1"},
    ),
    "pixel_shuffle": (lambda: nn.Sequential(conv(3, 32), nn.PixelShuffle(2), conv(8, 3, 3)), IMAGE, {"0"}),
    "pixel_unshuffle": (
        lambda: nn.Sequential(conv(3, 8), nn.PixelUnshuffle(2), conv(32, 8), head(8)),
        IMAGE,
        {"0", "2"},
    ),
    "group_norm_of_several": (lambda: nn.Sequential(conv(3, 16), nn.GroupNorm(4, 16), head(16)), IMAGE, {"0"}),
    "group_norm_of_one": (
        lambda: nn.Sequential(conv(3, 16), nn.GroupNorm(16, 16), nn.ReLU(), head(16)),
        IMAGE,
        {"0"},
    ),
    "group_norm_of_all": (
        lambda: nn.Sequential(conv(3, 16), nn.GroupNorm(1, 16), nn.ReLU(), head(16)),
        IMAGE,
        {"0"},
    ),
    "instance_norm": (
        lambda: nn.Sequential(conv(3, 16), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), head(16)),
        IMAGE,
        {"0"},
    ),
    "layer_norm_without_weights": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 3)),
        TOKENS,
        {"0"},
    ),
    "root_mean_square_norm": (
        lambda: nn.Sequential(nn.Linear(16, 24), nn.RMSNorm(24), nn.Linear(24, 3)),
        TOKENS,
        {"0"},
    ),
    "norm_written_as_arithmetic": (
        lambda: Net(_root_mean_square, a=nn.Linear(16, 24), weight=nn.Parameter(torch.ones(24)), head=nn.Linear(24, 3)),
        TOKENS,
        {"a"},
    ),
    "weight_norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(conv(3, 16)),
            nn.ReLU(),
            nn.utils.parametrizations.weight_norm(conv(16, 8)),
            head(8),
        ),
        IMAGE,
        {"0.bias", "2.bias"},
    ),
    "weight_standardisation": (
        lambda: nn.Sequential(
            StandardisedConv(3, 16, 3, padding=1), nn.ReLU(), StandardisedConv(16, 8, 3, padding=1), head(8)
        ),
        IMAGE,
        {"0.weight", "2.weight"},
    ),
    "attention": (
        lambda: Net(_attention, **_projections(q=32, k=32, v=32), head=nn.Linear(32, 3)),
        TOKENS,
        {"q"},
    ),
    "batch_and_heads_merged": (
        lambda: Net(_multihead, a=nn.MultiheadAttention(16, 4, batch_first=True), head=nn.Linear(16, 3)),
        TOKENS,
        {"a.in_proj", "a.out_proj"},
    ),
    "grouped_queries": (
        lambda: Net(_grouped_queries, **_projections(q=32, k=16, v=16), head=nn.Linear(32, 3)),
        TOKENS,
        {"q"},
    ),
    "keys_repeated_by_expand": (
        lambda: Net(_expanded_keys, **_projections(q=32, k=16, v=16), head=nn.Linear(32, 3)),
        TOKENS,
        {"q"},
    ),
    "keys_repeated_by_interleaving": (
        lambda: Net(_interleaved_keys, **_projections(q=32, k=16, v=16), head=nn.Linear(32, 3)),
        TOKENS,
        {"q"},
    ),
    "relative_position_table": (
        lambda: Net(
            _relative_position,
            **_projections(q=32, k=32, v=32),
            table=nn.Parameter(torch.zeros(11, 4)),
            index=torch.arange(6)[:, None] - torch.arange(6) + 5,
            head=nn.Linear(32, 3),
        ),
        TOKENS,
        {"q"},
    ),
    "mixer": (
        lambda: Net(
            _mixer,
            tokens1=nn.Linear(6, 12),
            tokens2=nn.Linear(12, 6),
            channels1=nn.Linear(16, 32),
            channels2=nn.Linear(32, 16),
            head=nn.Linear(16, 3),
        ),
        TOKENS,
        {"tokens1", "channels1", "channels2"},
    ),
    "einsum_with_a_raw_parameter": (
        lambda: Net(_einsum, a=nn.Linear(16, 24), mix=nn.Parameter(torch.zeros(24, 20)), head=nn.Linear(20, 3)),
        TOKENS,
        {"a", "mix"},
    ),
    "expanded_class_token": (
        lambda: Net(_token, a=nn.Linear(16, 24), token=nn.Parameter(torch.zeros(1, 1, 24)), head=nn.Linear(24, 3)),
        TOKENS,
        {"a"},
    ),
    "expanded_scalar": (
        lambda: Net(_wide_vector, a=nn.Linear(16, 20), scale=nn.Parameter(torch.ones(1)), head=nn.Linear(20, 3)),
        TOKENS,
        {"a"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_half_of_every_group_goes_and_the_mask_check_passes(name: str, tmp_path: Path) -> None:
    make, x, groups = CASES[name]
    subject = lifted(randomised(make()), (x,), tmp_path)
    halved = halve_and_prove(subject.graph, (x,))
    assert {group.id for group in halved.channels.groups} == groups


def test_the_scale_of_attention_is_kept_when_features_go(tmp_path: Path) -> None:
    make, x, _ = CASES["attention"]
    subject = lifted(randomised(make()), (x,), tmp_path)
    halved = halve_and_prove(subject.graph, (x,), attention="features")
    assert {(group.id, len(group.units)) for group in halved.channels.groups} == {("q", 8), ("v", 8)}
    (attention,) = (node for node in halved.after.graph.nodes if "scaled_dot" in node.name)
    assert attention.kwargs["scale"] == pytest.approx(8**-0.5)


def channels_of(module: nn.Module, x: Tensor, folder: Path) -> Channels:
    subject = lifted(randomised(module), (x,), folder)
    return analyse(subject.graph, (x,))


def reason(channels: Channels, layer: str) -> str:
    frozen = next(found.frozen for found in channels.layers if found.name == layer)
    assert frozen is not None
    return frozen


def test_kernel_dimensions_are_no_channels(tmp_path: Path) -> None:
    channels = channels_of(nn.Sequential(conv(3, 8, 3), conv(8, 8, 3), head(8)), IMAGE, tmp_path)
    assert {member.dim for group in channels.groups for member in group.members} == {0, 1}


def test_places_made_by_a_layer_are_put_back_before_a_convolution(tmp_path: Path) -> None:
    """The Linear gives the width of an image, which a convolution slides over."""
    module = nn.Sequential(nn.Linear(8, 12), conv(3, 8, 3), head(8))
    halved = halve_and_prove(lifted(randomised(module), (IMAGE,), tmp_path).graph, (IMAGE,))
    assert {group.id: len(group.units) for group in halved.channels.groups} == {"0": 12, "1": 8}


def test_integers_are_no_channels(tmp_path: Path) -> None:
    make, x, _ = CASES["relative_position_table"]
    channels = channels_of(make(), x, tmp_path)
    assert channels.parameters["index"] == [None, None]


def test_a_softmax_over_channels_lets_them_go(tmp_path: Path) -> None:
    module = nn.Sequential(conv(3, 8), nn.Softmax(1), head(8))
    halved = halve_and_prove(lifted(randomised(module), (IMAGE,), tmp_path).graph, (IMAGE,))
    assert {group.id: len(group.units) for group in halved.channels.groups} == {"0": 8}


def test_what_meets_the_input_stays(tmp_path: Path) -> None:
    channels = channels_of(Net(lambda net, x: net.b(net.a(x) + x), a=conv(3, 3), b=conv(3, 4)), IMAGE, tmp_path)
    assert not channels.groups
    assert reason(channels, "a") == "is combined with a tensor of fixed size by operator add (add_tensor)"
    assert reason(channels, "b") == "feeds the output of the network"


def test_an_operator_without_a_rule_keeps_its_inputs_whole(tmp_path: Path) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(torch.diff(net.a(x), dim=1))

    channels = channels_of(Net(forward, a=conv(3, 8), head=head(7)), IMAGE, tmp_path)
    assert not channels.groups
    assert reason(channels, "a") == "feeds operator diff (diff_default), which has no channel rule"


def test_a_channel_taken_alone_stays(tmp_path: Path) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.head(y * torch.sigmoid(y[:, :1]))

    channels = channels_of(Net(forward, a=conv(3, 8), head=head(8)), IMAGE, tmp_path)
    assert [len(group.units) for group in channels.groups] == [7]
