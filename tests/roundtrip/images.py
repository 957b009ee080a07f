"""Networks for images with a forward of their own: residual, dense and branched ones, U-Net, ConvNeXt, tied weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def _convolution(inside: int, outside: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 8)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x * self.squeeze(x)).mean(dim=(2, 3)))


class ShuffleNet(nn.Module):
    """Grouped convolutions with their channels shuffled between them, and half of the channels passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 8)
        self.first = nn.Conv2d(4, 4, 1, groups=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat((left, self.second(self._shuffled(self.first(right))).relu()), dim=1)
        return self.head(self._shuffled(x).mean((2, 3)))

    def _shuffled(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """He et al. 2016 with two blocks a stage, as ResNet-18 has, and few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = (6, 6, 8, 8, 10)
        for i, (inside, outside) in enumerate(pairwise(widths)):
            stage = nn.Sequential(_Block(inside, outside, 1 if i == 0 else 2), _Block(outside, outside, 1))
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18() -> nn.Module:
    return ResNet()


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), nn.Conv2d(6 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 8, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        x = functional.relu(self.transition(torch.cat(found, 1)))
        return self.head(functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = _convolution(3, 4, 1)
        self.three = nn.Sequential(_convolution(3, 2, 1), _convolution(2, 4, 3))
        self.five = nn.Sequential(_convolution(3, 2, 1), _convolution(2, 4, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(3, 4, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)
        return self.head(functional.dropout(x.amax(dim=(2, 3)), 0.5, self.training))


class UNet(nn.Module):
    """An encoder, a decoder that sees the encoder's maps again, and a linear head on the mean of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _convolution(2, 4), _convolution(4, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.merge = _convolution(8, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down1(x)
        deep = self.down2(functional.max_pool2d(wide, 2))
        smooth = functional.interpolate(deep, scale_factor=2.0, mode="bilinear", align_corners=False)[:, :4]
        x = self.merge(torch.cat((wide, self.up(deep) + smooth), dim=1))
        return self.head(x.mean(dim=[-2, -1]))


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), _LayerNorm2d(6, eps=1e-6))
        self.blocks = nn.Sequential(_ConvNeXtBlock(6), _ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


class NormalisedInside(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation itself."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.48, 0.45, 0.40]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.23, 0.22, 0.24]).view(1, 3, 1, 1))
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.mean) / self.std)


class Functional(nn.Module):
    """Written with functions and tensor methods in the place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.conv1(2.0 * x - 1.0)), 2)
        x = functional.leaky_relu(self.conv2(x), 0.1)[:, :, :-1, 1:]
        x = functional.pad(x.clamp(min=-1.0, max=2.0), (0, 2, 0, 2), value=0.25)
        x = functional.avg_pool2d(x, 2).reshape(x.size(0), -1)[:, :24]
        x = functional.normalize(self.fc1(x) ** 2 + 1e-2, dim=1).sqrt()
        x = torch.where(x > 0.2, x, x.exp() - 1.0)
        return self.fc2(functional.dropout(x, training=self.training)) / 2.0


class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh())
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.block(self.block(x) + x))


class Tied(nn.Module):
    """An encoder and a decoder of one weight, and a classifier on what the decoder leaves over."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.again = nn.Linear(12, 12), nn.Linear(12, 12)
        self.again.weight = self.inward.weight
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - self.again(torch.tanh(self.inward(x))))
