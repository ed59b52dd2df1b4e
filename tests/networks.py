"""Our own small networks with random weights, one for each family the engine must handle.

Every entry of `NETWORKS` returns a network in eval mode and example inputs with two samples. Weights come from a fixed
seed, BatchNorm statistics are randomised and nothing is zero-initialised, so that outputs depend on every layer.
"""

# mypy: disable-error-code="no-any-return, index"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Tensor, ...]]


class BasicBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += identity
        return self.relu(y)


class Bottleneck(nn.Module):
    def __init__(self, inner: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + identity)


class ResNet(nn.Module):
    """He et al., 2015. The stem's max pooling is kept; 32-pixel images end at 2x2."""

    def __init__(self, block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inner = 16
        for index, width in enumerate(widths):
            layer = nn.Sequential(block(inner, width, 1 if index == 0 else 2), block(width * expansion, width, 1))
            self.add_module(f"layer{index + 1}", layer)
            inner = width * expansion
        self.stages = len(widths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inner, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    """Simonyan and Zisserman, 2014: flatten of a 2x2 map into linear layers, dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = 3
        for width in (16, 32, 48):
            layers += [nn.Conv2d(inner, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
            inner = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(48 * 4, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 32), nn.ReLU(True), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int, gate: type[nn.Module], act: type[nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.act = act()
        self.expand = nn.Conv2d(inner, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    def __init__(self, inner: int, middle: int, outer: int, stride: int, act: type[nn.Module], gate: type[nn.Module]):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle), act())
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle), act()
        )
        squeezed = nn.ReLU if gate is nn.Hardsigmoid else act
        self.se = SqueezeExcite(middle, middle // 4, gate, squeezed)
        self.project = nn.Sequential(nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer))
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """MobileNetV3 (Howard et al., 2019) with hard-swish; EfficientNet (Tan and Le, 2019) with SiLU and sigmoid."""

    def __init__(self, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), act())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 32, 16, 1, act, gate),
            InvertedResidual(16, 64, 24, 2, act, gate),
            InvertedResidual(24, 96, 24, 1, act, gate),
        )
        self.head = nn.Sequential(nn.Conv2d(24, 64, 1, bias=False), nn.BatchNorm2d(64), act())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(64, 48), act(), nn.Dropout(0.2), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.head(self.blocks(self.stem(x))))
        return self.classifier(x.flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, inner: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Huang et al., 2016."""

    def __init__(self) -> None:
        super().__init__()
        growth, inner = 8, 16
        self.conv0 = nn.Conv2d(3, inner, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*[DenseLayer(inner + growth * i, growth) for i in range(3)])
        inner += 3 * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True), nn.Conv2d(inner, inner // 2, 1, bias=False), nn.AvgPool2d(2)
        )
        inner //= 2
        self.block2 = nn.Sequential(*[DenseLayer(inner + growth * i, growth) for i in range(3)])
        inner += 3 * growth
        self.norm = nn.BatchNorm2d(inner)
        self.classifier = nn.Linear(inner, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.conv0(x))))
        x = F.relu(self.norm(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Liu et al., 2022: layer scale as a raw parameter, LayerNorm over permuted channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 4, 4), LayerNorm2d(24))
        self.stage1 = nn.Sequential(ConvNeXtBlock(24), ConvNeXtBlock(24))
        self.downsample = nn.Sequential(LayerNorm2d(24), nn.Conv2d(24, 40, 2, 2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(40))
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.downsample(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class DoubleConv(nn.Sequential):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Ronneberger et al., 2015, two levels; one up-sampling by transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = DoubleConv(3, 16)
        self.down1 = DoubleConv(16, 24)
        self.down2 = DoubleConv(24, 32)
        self.up2 = nn.ConvTranspose2d(32, 24, 2, 2)
        self.merge2 = DoubleConv(48, 24)
        self.up1 = nn.Conv2d(24, 16, 1)
        self.merge1 = DoubleConv(32, 16)
        self.leave = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x)
        middle = self.down1(F.max_pool2d(fine, 2))
        coarse = self.down2(F.max_pool2d(middle, 2))
        middle = self.merge2(torch.cat([middle, self.up2(coarse)], 1))
        up = F.interpolate(self.up1(middle), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.leave(self.merge1(torch.cat([fine, up], 1)))


class Attention(nn.Module):
    """Packed query, key and value, as vision transformers have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al., 2020."""

    def __init__(self) -> None:
        super().__init__()
        width = 48
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 17, width))
        self.blocks = nn.Sequential(*[ViTBlock(width, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class BertAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.dense = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-1, -2) / (x.shape[-1] // self.heads) ** 0.5
        if mask is not None:
            scores = scores + (1.0 - mask[:, None, None, :].to(scores.dtype)) * -1e4
        y = self.dropout(scores.softmax(-1)) @ value
        return self.dense(y.transpose(1, 2).reshape(x.shape))


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """A BERT-like encoder (Devlin et al., 2018): attention written as arithmetic, a padding mask as second input."""

    def __init__(self) -> None:
        super().__init__()
        width = 32
        self.word = nn.Embedding(64, width, padding_idx=0)
        self.position = nn.Embedding(16, width)
        self.register_buffer("positions", torch.arange(16)[None], persistent=False)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([BertLayer(width, 4) for _ in range(2)])
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 5)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.word(tokens) + self.position(self.positions[:, : tokens.shape[1]]))
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 24)
        self.lstm = nn.LSTM(24, 32, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc = nn.Linear(64, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.lstm(self.embedding(tokens))
        return self.fc(y[:, -1])


class GRUClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 24, 3, padding=1)
        self.bn = nn.BatchNorm1d(24)
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.fc = nn.Linear(32, 5)

    def forward(self, signal: Tensor) -> Tensor:
        _, last = self.gru(F.leaky_relu(self.bn(self.conv(signal)), 0.1).transpose(1, 2))
        return self.fc(last[-1])


class TiedLanguageModel(nn.Module):
    """Raw parameters and an embedding shared with the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 24)
        self.position = nn.Parameter(torch.empty(12, 24))
        self.scale = nn.Parameter(torch.empty(24))
        self.mix = nn.Parameter(torch.empty(24, 48))
        self.down = nn.Linear(48, 24)
        self.act = nn.PReLU(48)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        y = self.act((x @ self.mix).transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x + self.scale * self.down(y)))


class TwoTowers(nn.Module):
    """Two inputs, a dict of outputs, one layer called twice, group and instance norm, a 1-D transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 24, 3, 2, 1),
            nn.InstanceNorm2d(24, affine=True),
            nn.ReLU(),
        )
        self.features = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24))
        self.shared = nn.Linear(24, 24)
        self.up = nn.ConvTranspose1d(24, 6, 4, 2, 1)
        self.head = nn.Linear(48, 3)

    def forward(self, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        seen = self.image(image)
        left = self.shared(seen.mean((2, 3)))
        right = self.shared(self.features(features))
        return {"logits": self.head(torch.cat([left, right], 1)), "profile": self.up(seen.flatten(2))}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every BatchNorm statistic a random value; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                normal(parameter, 0.0, (1.5 / fan_in) ** 0.5)
            else:
                normal(parameter, 0.0, 0.2)
        for layer in module.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 1:
                normal(weight, 1.0, 0.2)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                normal(layer.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
                layer.running_var.copy_(  # type: ignore[union-attr]
                    torch.rand(layer.num_features, generator=generator) + 0.5
                )
            if isinstance(layer, nn.Embedding):
                normal(layer.weight, 0.0, 1.0)
    return module.eval()


def _images(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def _tokens(length: int, vocabulary: int) -> Tensor:
    return torch.randint(1, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def resnet18() -> Example:
    return randomised(ResNet(BasicBlock, (16, 32, 48), 1)), (_images(),)


def resnet50() -> Example:
    return randomised(ResNet(Bottleneck, (8, 16, 24), 4)), (_images(),)


def vgg() -> Example:
    return randomised(VGG()), (_images(),)


def mobilenet_v3() -> Example:
    return randomised(MobileNet(nn.Hardswish, nn.Hardsigmoid)), (_images(),)


def efficientnet() -> Example:
    return randomised(MobileNet(nn.SiLU, nn.Sigmoid)), (_images(),)


def densenet() -> Example:
    return randomised(DenseNet()), (_images(side=16),)


def convnext() -> Example:
    return randomised(ConvNeXt()), (_images(),)


def unet() -> Example:
    return randomised(UNet()), (_images(side=16),)


def vit() -> Example:
    return randomised(ViT()), (_images(),)


def bert() -> Example:
    return randomised(Bert()), (_tokens(16, 64), torch.ones(2, 16, dtype=torch.int64))


def bert_without_mask() -> Example:
    return randomised(Bert()), (_tokens(16, 64),)


def lstm() -> Example:
    return randomised(LSTMClassifier()), (_tokens(10, 64),)


def gru() -> Example:
    return randomised(GRUClassifier()), (torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1)),)


def tied_language_model() -> Example:
    return randomised(TiedLanguageModel()), (_tokens(12, 40),)


def two_towers() -> Example:
    features = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    return randomised(TwoTowers()), (_images(1, 16), features)


NETWORKS: dict[str, Callable[[], Example]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg": vgg,
    "mobilenet_v3": mobilenet_v3,
    "efficientnet": efficientnet,
    "densenet": densenet,
    "convnext": convnext,
    "unet": unet,
    "vit": vit,
    "bert": bert,
    "bert_without_mask": bert_without_mask,
    "lstm": lstm,
    "gru": gru,
    "tied_language_model": tied_language_model,
    "two_towers": two_towers,
}


def export_pt2(module: nn.Module, args: tuple[Tensor, ...], path: Path) -> Path:
    """Write `module` as people are told to: eval mode, dimension 0 dynamic, example inputs that own their storage."""
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in args)
    owned = tuple(argument.clone() for argument in args)
    torch.export.save(torch.export.export(module.eval(), owned, dynamic_shapes=dynamic), path)
    return path
