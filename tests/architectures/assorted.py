# mypy: disable-error-code="no-any-return, no-untyped-call, operator, index"
"""Networks from all over: points, graphs, tables, signals, generators, flows. Own, small."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.libraries import images
from tests.architectures.registry import Registry
from tests.networks import Example, randomised


def values(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def network(module: nn.Module, *inputs: Tensor) -> Example:
    return randomised(module), inputs


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PointNet(nn.Module):
    """Qi et al., 2016: features of points turned by a matrix that the points themselves decide."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.look = nn.Sequential(nn.Conv1d(width, 32, 1), nn.ReLU())
        self.turn = nn.Linear(32, width * width)
        self.deep = nn.Sequential(nn.Conv1d(width, 48, 1), nn.BatchNorm1d(48), nn.ReLU())
        self.head = perceptron(48, 24, 5)

    def forward(self, points: Tensor) -> Tensor:
        x = self.enter(points)
        width = x.shape[1]
        turn = self.turn(self.look(x).max(2)[0]).view(-1, width, width) + torch.eye(width, device=x.device)
        x = torch.bmm(x.transpose(1, 2), turn).transpose(1, 2)
        return self.head(torch.max(self.deep(x), 2)[0])


class GraphConvolution(nn.Module):
    """ST-GCN (Yan et al., 2018): joints mixed by fixed matrices that learnt masks scale, then over time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(2)))
        self.edges = nn.Parameter(torch.ones(3, 7, 7))
        self.enter = nn.Conv2d(2, 3 * 16, 1)
        self.time = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, (5, 1), padding=(2, 0)), nn.ReLU())
        self.leave = nn.Linear(24, 5)

    def forward(self, joints: Tensor) -> Tensor:
        x = self.enter(joints)
        x = x.view(x.shape[0], 3, 16, *x.shape[2:])
        x = torch.einsum("nkctv,kvw->nctw", x, self.graph * self.edges)
        return self.leave(self.time(x).mean((2, 3)))


class RadianceField(nn.Module):
    """NeRF (Mildenhall et al., 2020): sines of places, put in again half way, two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(4))
        self.first, self.second = perceptron(27, 48, 48), perceptron(75, 48, 48)
        self.density, self.feature = nn.Linear(48, 1), nn.Linear(48, 32)
        self.color = perceptron(35, 24, 3)

    def encode(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], -1)

    def forward(self, place: Tensor, direction: Tensor) -> dict[str, Tensor]:
        encoded = self.encode(place)
        x = self.second(torch.cat([self.first(encoded).relu(), encoded], -1)).relu()
        color = self.color(torch.cat([self.feature(x), F.normalize(direction, dim=-1)], -1)).sigmoid()
        return {"density": F.softplus(self.density(x)), "color": color}


class Sines(nn.Module):
    """SIREN (Sitzmann et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(3.0 * layer(x))
        return self.layers[-1](x)


class Recommender(nn.Module):
    """DLRM (Naumov et al., 2019): products of all pairs of embeddings and of dense features."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(20, 16) for _ in range(3)])
        self.dense = perceptron(6, 32, 16)
        self.top = perceptron(16 + 6, 32, 1)
        rows, columns = torch.tril_indices(4, 4, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        x = self.dense(dense).relu()
        vectors = torch.stack([x, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = vectors @ vectors.transpose(1, 2)
        return self.top(torch.cat([x, products[:, self.rows, self.columns]], 1)).sigmoid()


class FactorizationMachine(nn.Module):
    """DeepFM (Guo et al., 2017): half the square of the sum less the sum of squares, beside a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.weights = nn.Embedding(40, 12), nn.Embedding(40, 1)
        self.deep = perceptron(48, 32, 1)

    def forward(self, fields: Tensor) -> Tensor:
        x = self.vectors(fields)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(1, keepdim=True)
        return self.weights(fields).sum(1) + pairs + self.deep(x.flatten(1))


class AttentiveTable(nn.Module):
    """TabNet-shaped (Arik and Pfister, 2019): sparsemax over the inputs by sorting, gated linear blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.blocks = nn.ModuleList([nn.Linear(12, 48), nn.Linear(24, 48)])
        self.attend = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def transform(self, x: Tensor) -> Tensor:
        x = F.glu(self.blocks[0](x), -1)
        return (x + F.glu(self.blocks[1](x), -1)) * 0.5**0.5

    def sparsemax(self, x: Tensor) -> Tensor:
        ordered, _ = torch.sort(x, -1, descending=True)
        total = ordered.cumsum(-1) - 1
        ranks = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        support = (ranks * ordered > total).sum(-1, keepdim=True)
        threshold = total.gather(-1, support - 1) / support.to(x.dtype)
        return (x - threshold).clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        decision, attention = self.transform(x).chunk(2, -1)
        mask = self.sparsemax(self.attend(attention))
        again, _ = self.transform(x * mask).chunk(2, -1)
        return self.head(decision.relu() + again.relu())


class Forecast(nn.Module):
    """N-BEATS (Oreshkin et al., 2019): blocks take what they explain off the input and add up what they foretell."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([perceptron(20, 32, 32, 25) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        answer = torch.zeros(x.shape[0], 5, device=x.device)
        for layers in self.blocks:
            back, ahead = layers(x).split([20, 5], 1)
            x, answer = x - back, answer + ahead
        return answer


class Autoencoder(nn.Module):
    """Convolutions to a vector and back, a mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU())
        self.mean, self.variance = nn.Linear(24 * 16, 6), nn.Linear(24 * 16, 6)
        self.enter = nn.Linear(6, 24 * 16)
        self.decode = nn.Sequential(
            nn.Unflatten(1, (24, 4, 4)),
            nn.ConvTranspose2d(24, 24, 4, 2, 1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.encode(x).flatten(1)
        mean = self.mean(y)
        return self.decode(self.enter(mean).relu()), mean, self.variance(y)


class Generator(nn.Module):
    """DCGAN with a class that scales and shifts what is normalised (Radford et al., 2015; Perez et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False)
        self.norm = nn.BatchNorm2d(32, affine=False)
        self.classes = nn.Embedding(5, 64)
        self.leave = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.ReLU(), nn.Conv2d(24, 3, 3, 1, 1))

    def forward(self, noise: Tensor, kind: Tensor) -> Tensor:
        scale, shift = self.classes(kind)[:, :, None, None].chunk(2, 1)
        return self.leave(self.norm(self.enter(noise[:, :, None, None])) * (1 + scale) + shift).tanh()


class MaskedConv(nn.Conv2d):
    """PixelCNN (van den Oord et al., 2016): a mask hides the pixels that come later."""

    mask: Tensor

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, 3, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2:], mask[:, :, 2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class PixelCNN(nn.Module):
    """Gated: tanh of one half times the sigmoid of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle = MaskedConv(3, 24), MaskedConv(24, 48)
        self.leave = nn.Conv2d(24, 3 * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        first, second = self.middle(x).chunk(2, 1)
        y = self.leave(x + first.tanh() * second.sigmoid())
        return y.view(y.shape[0], 3, 4, *y.shape[2:]).log_softmax(2)


class Flow(nn.Module):
    """Glow-shaped (Kingma and Dhariwal, 2018): squeeze, a learnt mixture of channels, an affine coupling; the log of
    the determinant beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.scale = nn.Parameter(torch.zeros(1, 12, 1, 1)), nn.Parameter(torch.ones(1, 12, 1, 1))
        self.mix = nn.Parameter(torch.eye(12))
        self.net = nn.Sequential(nn.Conv2d(6, 48, 3, 1, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, 1, 1), nn.ReLU())
        self.last = nn.Conv2d(48, 12, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pixel_unshuffle(x, 2)
        x = F.conv2d((x + self.bias) * self.scale.exp(), self.mix[:, :, None, None])
        kept, changed = x.chunk(2, 1)
        shift, scale = self.last(self.net(kept)).chunk(2, 1)
        scale = torch.sigmoid(scale + 2)
        return torch.cat([kept, (changed + shift) * scale], 1), scale.log().sum((1, 2, 3))


class BrainSignals(nn.Module):
    """EEGNet (Lawhern et al., 2018): over time, then over electrodes a channel, then separable."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Conv2d(1, 12, (1, 9), padding=(0, 4), bias=False), nn.BatchNorm2d(12))
        self.place = nn.Sequential(nn.Conv2d(12, 24, (8, 1), groups=12, bias=False), nn.BatchNorm2d(24), nn.ELU())
        self.pool = nn.Sequential(nn.AvgPool2d((1, 4)), nn.Dropout(0.5))
        self.separable = nn.Sequential(
            nn.Conv2d(24, 24, (1, 5), padding=(0, 2), groups=24, bias=False),
            nn.Conv2d(24, 48, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.ELU(),
        )
        self.pooled = nn.AvgPool2d((1, 8))
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(self.separable(self.pool(self.place(self.time(x))))).flatten(1))


class LineReader(nn.Module):
    """CRNN (Shi et al., 2015): columns of an image as steps of a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, 1, 1)
        )
        self.recurrent = nn.LSTM(24 * 4, 20, bidirectional=True, batch_first=True)
        self.head = nn.Linear(40, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolutions(x).relu().permute(0, 3, 1, 2).flatten(2)
        return self.head(self.recurrent(y)[0]).log_softmax(-1)


class GatedUNet(nn.Module):
    """Attention U-Net (Oktay et al., 2018) for sizes that do not halve evenly: padded to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.deep = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.skip, self.gate, self.weigh = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 1, 1)
        self.leave = nn.Sequential(nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x).relu()
        y = self.up(self.deep(F.max_pool2d(first, 2)).relu())
        down, right = first.shape[2] - y.shape[2], first.shape[3] - y.shape[3]
        y = F.pad(y, [right // 2, right - right // 2, down // 2, down - down // 2])
        weight = self.weigh((self.skip(first) + self.gate(y)).relu()).sigmoid()
        return self.leave(torch.cat([first * weight, y], 1))


class WeightedPyramid(nn.Module):
    """BiFPN (Tan et al., 2020): features added with learnt weights that sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 24, 3, 2, 1)])
        self.weights = nn.Parameter(torch.ones(2))
        self.after = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24))
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.levels[0](x)
        coarse = self.levels[1](fine.relu())
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        mixed = weights[0] * fine + weights[1] * F.interpolate(coarse, scale_factor=2.0)
        return self.head(self.after(F.silu(mixed)))


class Capsules(nn.Module):
    """Sabour et al., 2017: vectors vote for classes, three rounds of agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU())
        self.primary = nn.Conv2d(24, 32, 3, 2)
        self.votes = nn.Parameter(torch.empty(4, 36 * 4, 6, 8))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        norm = x.square().sum(-1, keepdim=True)
        return norm / (1 + norm) * x / (norm + 1e-8).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(self.enter(x))
        y = self.squash(y.view(y.shape[0], 4, 8, -1).permute(0, 1, 3, 2).flatten(1, 2))
        votes = torch.einsum("bid,kiod->bkio", y, self.votes)
        logits = torch.zeros(votes.shape[:3], device=x.device)
        for _ in range(3):
            out = self.squash((logits.softmax(1)[..., None] * votes).sum(2))
            logits = logits + (votes * out[:, :, None]).sum(-1)
        return out.norm(dim=-1)


class ConvolutionalLSTM(nn.Module):
    """Shi et al., 2015: gates by convolution, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 + 16, 4 * 16, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        batch, steps, _, height, side = frames.shape
        state = cell = torch.zeros(batch, 16, height, side, device=frames.device)
        for step in range(steps):
            i, f, o, g = self.gates(torch.cat([frames[:, step], state], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return self.head(state)


class MixtureDensity(nn.Module):
    """Bishop, 1994: weights, means and deviations of a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(6, 32, 32)
        self.leave = nn.Linear(32, 3 * (1 + 2 + 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, means, deviations = self.leave(self.body(x).tanh()).split([3, 6, 6], 1)
        return weights.softmax(1), means.view(-1, 3, 2), deviations.exp().view(-1, 3, 2)


class Experts(nn.Module):
    """A mixture of experts, all of them run, weighted by a gate (Jacobs et al., 1991)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 4)
        self.enter, self.leave = nn.Parameter(torch.empty(4, 12, 32)), nn.Parameter(torch.empty(4, 32, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,eih->beh", x, self.enter).relu()
        out = torch.einsum("beh,eho->beo", hidden, self.leave)
        return self.head(x + (self.gate(x).softmax(-1)[..., None] * out).sum(1))


class Twins(nn.Module):
    """One tower for two images, compared by cosine and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 24),
        )
        self.head = nn.Linear(24, 1)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        a, b = self.tower(first), self.tower(second)
        return {"cosine": F.cosine_similarity(a, b), "same": self.head((a - b).abs()).sigmoid()}


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, (2, *shape), generator=torch.Generator().manual_seed(1))


ASSORTED: Registry = {
    "point_net": lambda: network(PointNet(), values(3, 20)),
    "graph_convolution": lambda: network(GraphConvolution(), values(2, 10, 7)),
    "radiance_field": lambda: network(RadianceField(), values(3), values(3, seed=2)),
    "sines": lambda: network(Sines(), values(2)),
    "recommender": lambda: network(Recommender(), values(6), integers(20, 3)),
    "factorization_machine": lambda: network(FactorizationMachine(), integers(40, 4)),
    "attentive_table": lambda: network(AttentiveTable(), values(12)),
    "forecast": lambda: network(Forecast(), values(20)),
    "autoencoder": lambda: network(Autoencoder(), images(16)),
    "generator": lambda: network(Generator(), values(16), integers(5)),
    "pixel_cnn": lambda: network(PixelCNN(), images(8)),
    "flow": lambda: network(Flow(), images(8)),
    "brain_signals": lambda: network(BrainSignals(), values(1, 8, 32)),
    "line_reader": lambda: network(LineReader(), values(1, 8, 24)),
    "gated_unet": lambda: network(GatedUNet(), images(15)),
    "weighted_pyramid": lambda: network(WeightedPyramid(), images(16)),
    "capsules": lambda: network(Capsules(), images(32)),
    "convolutional_lstm": lambda: network(ConvolutionalLSTM(), values(4, 2, 8, 8)),
    "mixture_density": lambda: network(MixtureDensity(), values(6)),
    "experts": lambda: network(Experts(), values(12)),
    "twins": lambda: network(Twins(), images(16), values(3, 16, 16, seed=3)),
}
