"""ResNet-18, -34 and -50, with the parameter names of torchvision.

The architecture is that of He et al., "Deep Residual Learning for Image
Recognition" (2015, arXiv:1512.03385, table 1). As in torchvision, and unlike the
paper, a bottleneck strides in its 3x3 convolution. Names, shapes and
initialisation equal torchvision's, so its public weights load unchanged.
"""

from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and -34.

    Maps float32 (N, in_planes, H, W) to float32 (N, planes, H / stride, W / stride),
    where the quotients round up.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_planes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        residual: Tensor = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.relu(residual + shortcut)
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, and a shortcut: the block of ResNet-50.

    Maps float32 (N, in_planes, H, W) to
    float32 (N, 4 * planes, H / stride, W / stride), where the quotients round up.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_planes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        out_planes = planes * self.expansion
        self.conv1 = _conv1x1(in_planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv1x1(planes, out_planes)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        residual: Tensor = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        out: Tensor = self.relu(residual + shortcut)
        return out


class ResNetOptions(TypedDict, total=False):
    """The keyword arguments of `ResNet` that every depth shares."""

    num_classes: int
    in_channels: int
    small_images: bool
    zero_init_residual: bool


class ResNet(nn.Module):
    """A residual network: a stem, four layers of blocks, and a linear classifier.

    Maps float32 (N, in_channels, H, W) to float32 logits (N, num_classes).

    With `small_images` the stem is a 3x3 convolution of stride 1 without max pool,
    so `layer1` sees H x W and not H/4 x W/4. `zero_init_residual` makes every block
    start as its shortcut (Goyal et al. 2017, section 5.1).

    Raises ValueError if `in_channels` is neither 1 nor 3, or `num_classes` is below 1.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        small_images: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, not {in_channels}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")

        # Modules are made in torchvision's order: one seed gives one initialisation.
        self.conv1: nn.Conv2d
        self.maxpool: nn.Module
        if small_images:
            self.conv1 = _conv3x3(in_channels, 64)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        if small_images:
            self.maxpool = nn.Identity()
        else:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        width = block.expansion
        self.layer1 = _layer(block, 64, 64, depths[0], stride=1)
        self.layer2 = _layer(block, 64 * width, 128, depths[1], stride=2)
        self.layer3 = _layer(block, 128 * width, 256, depths[2], stride=2)
        self.layer4 = _layer(block, 256 * width, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * width, num_classes)
        _initialise(self, zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.fc(x)
        return logits


def resnet18(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-18: 11,689,512 parameters with the default options."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-34: 21,797,672 parameters with the default options."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Unpack[ResNetOptions]) -> ResNet:
    """ResNet-50: 25,557,032 parameters with the default options."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def _layer(
    block: type[BasicBlock] | type[Bottleneck],
    in_planes: int,
    planes: int,
    depth: int,
    stride: int,
) -> nn.Sequential:
    """`depth` blocks, the first of which strides and changes the width."""
    out_planes = planes * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or in_planes != out_planes:
        downsample = nn.Sequential(_conv1x1(in_planes, out_planes, stride), nn.BatchNorm2d(out_planes))
    first = block(in_planes, planes, stride, downsample)
    rest = [block(out_planes, planes, 1, None) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def _initialise(network: nn.Module, zero_init_residual: bool) -> None:
    # BatchNorm already starts at weight 1 and bias 0, and torchvision leaves
    # the classifier as nn.Linear made it.
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif zero_init_residual and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def _conv3x3(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, kernel_size=1, stride=stride, bias=False)
