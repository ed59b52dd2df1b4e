# mypy: disable-error-code="no-any-return, index"
"""Ways of writing a convolutional network that the well-known ones do not take: own small networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.libraries import images
from tests.architectures.registry import Registry
from tests.networks import Example, randomised


class Network(nn.Module):
    """A stem, the layers under test with as many channels out as in, a head."""

    def __init__(self, *layers: nn.Module, width: int = 24, out: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(out or width, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.layers(self.stem(x)))).mean((2, 3)))


def network(*layers: nn.Module, width: int = 24, out: int | None = None) -> Example:
    return randomised(Network(*layers, width=width, out=out)), (images(32),)


class StdConv(nn.Conv2d):
    """Weight standardisation as arithmetic (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvolutionalAttention(nn.Module):
    """CBAM (Woo et al., 2018): channels by mean and maximum, then places by the same over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(self.mix(F.adaptive_avg_pool2d(x, 1)) + self.mix(F.adaptive_max_pool2d(x, 1)))
        seen = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return y * torch.sigmoid(self.place(seen))


class CoordinateAttention(nn.Module):
    """Hou et al., 2021: pooled rows and columns in one map, split again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, 12, 1), nn.BatchNorm2d(12), nn.Hardswish())
        self.down, self.across = nn.Conv2d(12, width, 1), nn.Conv2d(12, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, side = x.shape[-2:]
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        rows, columns = self.enter(torch.cat([rows, columns], 2)).split([height, side], 2)
        return x * self.down(rows).sigmoid() * self.across(columns.permute(0, 1, 3, 2)).sigmoid()


class ChannelConvolution(nn.Module):
    """ECA (Wang et al., 2020): a convolution along the channels decides their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3))[:, None])
        return x * y.sigmoid().view(x.shape[0], -1, 1, 1).expand_as(x)


class NonLocal(nn.Module):
    """Wang et al., 2018: every place looks at every other, by matrix products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(width, 12, 1) for _ in range(3))
        self.leave = nn.Conv2d(12, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        seen = torch.bmm(torch.softmax(torch.bmm(query.transpose(1, 2), key), -1), value.transpose(1, 2))
        return x + self.leave(seen.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))


class Gram(nn.Module):
    """Second-order pooling: the covariance of channels, one row a channel, as a gate (Gao et al., 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, 8, 1)
        self.rows = nn.Conv2d(8, 16, (8, 1))
        self.gate = nn.Conv2d(16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x).flatten(2)
        y = y - y.mean(2, keepdim=True)
        covariance = (y @ y.transpose(1, 2) / y.shape[2])[:, :, :, None]
        return x * self.gate(self.rows(covariance)).sigmoid()


class Involution(nn.Module):
    """Li et al., 2021: kernels made from the values, patches by im2col."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.make = nn.Sequential(nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Conv2d(8, 9 * groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, side = x.shape
        kernel = self.make(x).view(batch, self.groups, 1, 9, height, side)
        patches = F.unfold(x, 3, padding=1).view(batch, self.groups, width // self.groups, 9, height, side)
        return (kernel * patches).sum(3).view(batch, width, height, side)


class Shift(nn.Module):
    """Parts of the channels moved by a pixel, by assignment to slices (Wu et al., 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        part = x.shape[1] // 4
        y[:, :part, :, 1:] = x[:, :part, :, :-1]
        y[:, part : 2 * part, :, :-1] = x[:, part : 2 * part, :, 1:]
        y[:, 2 * part :] = x[:, 2 * part :]
        return y


class Octave(nn.Module):
    """Chen et al., 2019: two resolutions that talk to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.fine, self.coarse = nn.Conv2d(width, half, 3, padding=1), nn.Conv2d(width, half, 3, padding=1)
        self.up, self.down = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(F.avg_pool2d(x, 2))
        both = fine + F.interpolate(self.up(coarse), scale_factor=2.0), coarse + self.down(F.avg_pool2d(fine, 2))
        return torch.cat([both[0], F.interpolate(both[1], scale_factor=2.0)], 1)


class Maxout(nn.Module):
    """Goodfellow et al., 2013: the largest of neighbouring channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(y.shape[0], -1, 2, *y.shape[2:]).amax(2)


class MixtureOfKernels(nn.Module):
    """Conditional convolution (Yang et al., 2019): each sample mixes its own weight; the batch becomes groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width, width, 3, 3))
        self.choose = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, side = x.shape
        mixed = torch.einsum("bk,koihw->boihw", self.choose(x.mean((2, 3))).softmax(-1), self.weight)
        y = F.conv2d(x.reshape(1, batch * width, height, side), mixed.flatten(0, 1), padding=1, groups=batch)
        return y.view(batch, width, height, side)


class SpaceToDepth(nn.Module):
    """Every other row and column beside each other as channels (YOLO v5's focus), and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return F.pixel_shuffle(self.conv(torch.cat(parts, 1)).relu(), 2)


class Interleaved(nn.Module):
    """Even and odd channels taken apart by strided slices, as flows do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width // 2, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[:, ::2], x[:, 1::2]
        return torch.cat([even, odd + self.conv(even).tanh()], 1)


class Permuted(nn.Module):
    """Channels in another order, by a table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(width, generator=torch.Generator().manual_seed(5)))
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, self.order]).relu() + x.flip(1)


class LocalResponse(nn.Module):
    """AlexNet's normalisation over neighbouring channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5)


class SpatialTransformer(nn.Module):
    """Jaderberg et al., 2015."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.theta = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(self.place(x)).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


class ChannelSoftmax(nn.Module):
    """A softmax over channels gates them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).softmax(1) * x.shape[1]


class Demodulated(nn.Module):
    """StyleGAN 2's convolution (Karras et al., 2020), the scale applied to values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        self.style = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        style = self.style(x.mean((2, 3))) + 1
        norm = torch.rsqrt((self.weight.square().sum((2, 3))[None] * style[:, None].square()).sum(2) + 1e-8)
        return F.conv2d(x * style[:, :, None, None], self.weight, padding=1) * norm[:, :, None, None]


class SharedKernel(nn.Module):
    """A shared kernel over every channel: channels as part of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(0, 1)[:, None]).view_as(x)


def weight_norm(dim: int) -> Example:
    width = 24
    layers = [nn.utils.parametrizations.weight_norm(nn.Conv2d(width, width, 3, padding=1), dim=dim) for _ in range(2)]
    return network(layers[0], nn.ReLU(), layers[1])


def old_weight_norm() -> Example:
    layer = nn.Conv2d(24, 24, 3, padding=1)
    nn.utils.weight_norm(layer)
    return network(layer, nn.ReLU())


def spectral_norm() -> Example:
    return network(nn.utils.parametrizations.spectral_norm(nn.Conv2d(24, 24, 3, padding=1)), nn.ReLU())


UNUSUAL: Registry = {
    "weight_norm": lambda: weight_norm(0),
    "weight_norm_inputs": lambda: weight_norm(1),
    "weight_norm_hook": old_weight_norm,
    "spectral_norm": spectral_norm,
    "weight_standardisation": lambda: network(StdConv(24, 24, 3, padding=1), nn.GroupNorm(6, 24), nn.ReLU()),
    "cbam": lambda: network(ConvolutionalAttention(24)),
    "coordinate_attention": lambda: network(CoordinateAttention(24)),
    "eca": lambda: network(nn.Conv2d(24, 24, 3, padding=1), ChannelConvolution()),
    "non_local": lambda: network(NonLocal(24)),
    "gram": lambda: network(Gram(24)),
    "involution": lambda: network(Involution(24, 4)),
    "shift": lambda: network(Shift(), nn.Conv2d(24, 24, 1), nn.ReLU()),
    "octave": lambda: network(Octave(24)),
    "maxout": lambda: network(Maxout(24)),
    "mixture_of_kernels": lambda: network(MixtureOfKernels(24)),
    "space_to_depth": lambda: network(SpaceToDepth(24)),
    "interleaved": lambda: network(Interleaved(24)),
    "permuted": lambda: network(Permuted(24)),
    "local_response": lambda: network(LocalResponse(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()),
    "spatial_transformer": lambda: network(SpatialTransformer(24)),
    "channel_softmax": lambda: network(ChannelSoftmax(24)),
    "demodulated": lambda: network(Demodulated(24)),
    "shared_kernel": lambda: network(SharedKernel()),
}
