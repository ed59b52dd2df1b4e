# mypy: disable-error-code="no-any-return, no-untyped-call, operator"
"""Networks with an answer for every place: segmentation, detection, restoration, video and volumes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.libraries import images, timm_network, torchvision_on
from tests.architectures.registry import Registry
from tests.networks import UNet, randomised


def block(inner: int, outer: int, stride: int = 1, size: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    padding = dilation * (size // 2)
    convolution = nn.Conv2d(inner, outer, size, stride, padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.SiLU(inplace=True))


class AtrousPyramid(nn.Module):
    """DeepLab v3 (Chen et al., 2017): dilated branches beside an image-wide one; an auxiliary answer as FCN has it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(3, 16, 2), block(16, 32, 2), block(32, 48, dilation=2))
        self.branches = nn.ModuleList([block(48, 24, size=1), *(block(48, 24, dilation=rate) for rate in (2, 4))])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), block(48, 24, size=1))
        self.project = nn.Sequential(block(96, 32, size=1), nn.Dropout(0.1), block(32, 32))
        self.classifier = nn.Conv2d(32, 5, 1)
        self.auxiliary = nn.Sequential(block(32, 16), nn.Conv2d(16, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        middle = self.backbone[1](self.backbone[0](x))
        deep = self.backbone[2](middle)
        pooled = F.interpolate(self.pooled(deep), size=deep.shape[-2:], mode="bilinear", align_corners=False)
        y = self.project(torch.cat([*(branch(deep) for branch in self.branches), pooled], 1))
        answers = {"out": self.classifier(y), "aux": self.auxiliary(middle)}
        return {
            name: F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
            for name, y in answers.items()
        }


class Split(nn.Module):
    """The C2f block of YOLO v8: halves of the channels, each bottleneck's result kept beside what it was made of."""

    def __init__(self, inner: int, outer: int, count: int = 1) -> None:
        super().__init__()
        self.enter = block(inner, outer, size=1)
        half = outer // 2
        self.steps = nn.ModuleList(nn.Sequential(block(half, half), block(half, half)) for _ in range(count))
        self.leave = block((2 + count) * outer // 2, outer, size=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Yolo(nn.Module):
    """YOLO v8-shaped: spatial pyramid pooling, features merged up and down, boxes as expectations over bins (DFL)."""

    BINS = 8

    def __init__(self, decode: bool) -> None:
        super().__init__()
        self.decode = decode
        self.stem = nn.Sequential(block(3, 16, 2), block(16, 24, 2), Split(24, 24))
        self.down1 = nn.Sequential(block(24, 32, 2), Split(32, 32, 2))
        self.down2 = nn.Sequential(block(32, 48, 2), Split(48, 48))
        self.enter, self.leave = block(48, 24, size=1), block(96, 48, size=1)
        self.merge = Split(80, 32)
        self.again = block(32, 32, 2)
        self.last = Split(80, 48)
        self.boxes = nn.ModuleList([nn.Sequential(block(n, 16), nn.Conv2d(16, 4 * self.BINS, 1)) for n in (32, 48)])
        self.classes = nn.ModuleList([nn.Sequential(block(n, 24), nn.Conv2d(24, 6, 1)) for n in (32, 48)])
        self.register_buffer("bins", torch.arange(self.BINS, dtype=torch.float32))

    def forward(self, x: Tensor) -> Any:
        fine = self.down1(self.stem(x))
        pooled = [self.enter(self.down2(fine))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        coarse = self.leave(torch.cat(pooled, 1))
        fine = self.merge(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        coarse = self.last(torch.cat([self.again(fine), coarse], 1))
        levels = [
            torch.cat([box(y), kind(y)], 1)
            for box, kind, y in zip(self.boxes, self.classes, (fine, coarse), strict=True)
        ]
        if not self.decode:
            return levels
        flat = torch.cat([y.flatten(2) for y in levels], 2)
        boxes, classes = flat.split((4 * self.BINS, 6), 1)
        batch, _, anchors = boxes.shape
        spread = boxes.view(batch, 4, self.BINS, anchors).softmax(2)
        distances = (spread * self.bins.view(1, 1, -1, 1)).sum(2)
        return torch.cat([distances, classes.sigmoid()], 1)


class SingleShot(nn.Module):
    """SSD-shaped (Liu et al., 2016): several maps, one of them scaled after L2 normalisation over its channels; boxes
    and scores of all anchors in two lists."""

    ANCHORS = 2

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(True), nn.Conv2d(24, 64, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2))
        )
        self.scale = nn.Parameter(torch.ones(64))
        self.extra = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 48, 1), nn.ReLU(True), nn.Conv2d(48, 64, 3, 2, 1), nn.ReLU(True))
            for _ in range(2)
        )
        self.boxes = nn.ModuleList([nn.Conv2d(64, 4 * self.ANCHORS, 3, padding=1) for _ in range(3)])
        self.scores = nn.ModuleList([nn.Conv2d(64, 6 * self.ANCHORS, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone(x)
        maps = [self.scale.view(1, -1, 1, 1) * F.normalize(x)]
        for layers in self.extra:
            x = layers(x)
            maps.append(x)
        return self._listed(self.boxes, maps, 4), self._listed(self.scores, maps, 6)

    def _listed(self, heads: nn.ModuleList, maps: list[Tensor], size: int) -> Tensor:
        found = []
        for head, values in zip(heads, maps, strict=True):
            y = head(values)
            y = y.view(y.shape[0], -1, size, *y.shape[-2:]).permute(0, 3, 4, 1, 2)
            found.append(y.reshape(y.shape[0], -1, size))
        return torch.cat(found, 1)


class RetinaNet(nn.Module):
    """Lin et al., 2017: a feature pyramid, one head shared by all its levels, group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([block(3, 24, 4), block(24, 32, 2), block(32, 48, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 32, 1) for width in (24, 32, 48)])
        self.smooth = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(32, 6, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        merged = [lateral(y) for lateral, y in zip(self.lateral, found, strict=True)]
        for level in (1, 0):
            merged[level] = merged[level] + F.interpolate(merged[level + 1], size=merged[level].shape[-2:])
        towers = [self.tower(smooth(y)) for smooth, y in zip(self.smooth, merged, strict=True)]
        boxes = [(self.boxes(y) * scale).exp() for y, scale in zip(towers, self.scales, strict=True)]
        return {"scores": [self.scores(y) for y in towers], "boxes": boxes}


class Hourglass(nn.Module):
    """Newell et al., 2016: keypoints as the expected place under a softmax over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = block(3, 24, 2)
        self.outer, self.inner, self.deep = block(24, 32), block(24, 32), block(32, 32)
        self.leave = nn.Conv2d(32, 4, 1)
        self.register_buffer("places", torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        deep = F.interpolate(self.deep(F.max_pool2d(self.inner(x), 2)), scale_factor=2.0)
        heat = self.leave(self.outer(x) + deep)
        weights = heat.flatten(2).softmax(-1).view_as(heat)
        across = (weights.sum(2) * self.places).sum(-1)
        down = (weights.sum(3) * self.places).sum(-1)
        return torch.stack([across, down], -1)


class SuperResolution(nn.Module):
    """EDSR with channel attention (Lim et al., 2017; Zhang et al., 2018): no normalisation, sub-pixel up-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 24, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(True), nn.Conv2d(32, 24, 3, padding=1))
            for _ in range(2)
        )
        self.attention = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 1), nn.Sigmoid())
            for _ in range(2)
        )
        self.up = nn.Sequential(nn.Conv2d(24, 96, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(24))
        self.leave = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.enter(x)
        for body, attention in zip(self.body, self.attention, strict=True):
            z = body(y)
            y = y + 0.1 * z * attention(z)
        big = F.interpolate(x, scale_factor=4.0, mode="bicubic", align_corners=False)
        return self.leave(self.up(first + y)) + big


class StyleTransfer(nn.Module):
    """Johnson et al., 2016: reflection padding, instance normalisation, nearest up-sampling, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 16, 7), nn.InstanceNorm2d(16, affine=True))
        self.down = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(16, 32, 3, 2), nn.InstanceNorm2d(32))
        self.inner = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(32, 32, 3), nn.InstanceNorm2d(32, affine=True))
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(32, 16, 3))
        self.leave = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(16, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.enter(x).relu()).relu()
        return self.leave(self.up(y + self.inner(y).relu()))


class VolumeNet(nn.Module):
    """V-Net-shaped (Milletari et al., 2016): 3-D convolutions with a way down and up, PReLU, a score a voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(1, 12, 3, padding=1), nn.BatchNorm3d(12), nn.PReLU(12))
        self.down = nn.Sequential(nn.Conv3d(12, 24, 2, 2), nn.InstanceNorm3d(24, affine=True), nn.PReLU())
        self.deep = nn.Sequential(nn.Conv3d(24, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.LeakyReLU(0.1))
        self.up = nn.ConvTranspose3d(24, 12, 2, 2)
        self.leave = nn.Sequential(nn.Conv3d(24, 12, 3, padding=1), nn.ELU(), nn.Conv3d(12, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        y = self.down(first)
        return self.leave(torch.cat([first, self.up(y + self.deep(y))], 1)).softmax(1)


DENSE: Registry = {
    "unet": lambda: (randomised(UNet()), (images(32),)),
    "deeplab": lambda: (randomised(AtrousPyramid()), (images(),)),
    "fcn_resnet50": lambda: torchvision_on("fcn_resnet50", (3, 64, 64), weights_backbone=None),
    "lraspp_mobilenet": lambda: torchvision_on("lraspp_mobilenet_v3_large", (3, 64, 64), weights_backbone=None),
    "hrnet_features": lambda: timm_network("hrnet_w18_small", features_only=True),
    "yolo": lambda: (randomised(Yolo(decode=False)), (images(),)),
    "yolo_decoded": lambda: (randomised(Yolo(decode=True)), (images(),)),
    "ssd": lambda: (randomised(SingleShot()), (images(),)),
    "retinanet": lambda: (randomised(RetinaNet()), (images(),)),
    "hourglass": lambda: (randomised(Hourglass()), (images(32),)),
    "super_resolution": lambda: (randomised(SuperResolution()), (images(16),)),
    "style_transfer": lambda: (randomised(StyleTransfer()), (images(16),)),
    "volume_net": lambda: (randomised(VolumeNet()), (torch.randn(2, 1, 8, 16, 16),)),
    "resnet_3d": lambda: torchvision_on("r3d_18", (3, 4, 32, 32)),
    "resnet_2_plus_1_d": lambda: torchvision_on("r2plus1d_18", (3, 4, 32, 32)),
}
