"""Networks made of torch.nn's own layers alone: what a pickled module may hold and still be read without ``--arch``."""

from __future__ import annotations

from torch import nn


def mlp_relu() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16, bias=False), nn.ReLU6(), nn.Linear(16, 4)
    )


def mlp_tanh() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()), nn.Linear(16, 3))


def mlp_gelu() -> nn.Module:
    hidden = [nn.Linear(16, 16), nn.GELU(approximate="tanh"), nn.LayerNorm(16, elementwise_affine=True)]
    return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.1), *hidden, nn.Linear(16, 4))


def mlp_selu() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(16, 8), nn.CELU(1.5), nn.Linear(8, 4))


def mlp_batch_norm() -> nn.Module:
    last = [nn.Linear(16, 8), nn.Softplus(beta=2), nn.BatchNorm1d(8, affine=True, eps=1e-3), nn.Linear(8, 4)]
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ELU(0.7), nn.Identity(), *last)


def mlp_silu_mish() -> nn.Module:
    last = [nn.Linear(16, 8), nn.Hardtanh(-0.8, 0.9), nn.Softsign(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 16), nn.Mish(), *last)


def mlp_softmax() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(dim=1))


def mlp_log_softmax() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4), nn.LogSoftmax(dim=-1))


def mlp_sigmoid() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid())


def mlp_regression() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))


def lenet() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.AvgPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Linear(72, 16), nn.Tanh(), nn.Linear(16, 10))


def vgg() -> nn.Module:
    def block(inside: int, outside: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(48, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 5)]
    return nn.Sequential(*block(3, 8), *block(8, 12), *block(12, 12), nn.AdaptiveAvgPool2d((2, 2)), *head)


def all_convolutional() -> nn.Module:
    body = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.ReLU(),
        nn.Dropout2d(0.2),
    ]
    return nn.Sequential(*body, nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mobilenet() -> nn.Module:
    def separable(inside: int, outside: int, stride: int) -> nn.Module:
        depthwise = nn.Conv2d(inside, inside, 3, stride=stride, padding=1, groups=inside, bias=False)
        pointwise = nn.Conv2d(inside, outside, 1, bias=False)
        return nn.Sequential(
            depthwise, nn.BatchNorm2d(inside), nn.Hardswish(), pointwise, nn.BatchNorm2d(outside), nn.Hardsigmoid()
        )

    stem = [nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    return nn.Sequential(
        *stem, separable(8, 12, 1), separable(12, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )


def dilated() -> nn.Module:
    body = [
        nn.Conv2d(3, 6, 3, dilation=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, (3, 1), stride=(2, 1), padding=(1, 0)),
        nn.ReLU(),
    ]
    odd = [nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(6, 6, (2, 3), dilation=(1, 2), stride=2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*body, *odd, nn.Flatten(1), nn.Linear(150, 4))


def transposed() -> nn.Module:
    body = [
        nn.ConvTranspose2d(2, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    ]
    return nn.Sequential(*body, nn.Tanh(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 4))


def convolution_1d() -> nn.Module:
    body = [
        nn.Conv1d(3, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, dilation=2),
        nn.ReLU(),
    ]
    return nn.Sequential(*body, nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))


def convolution_3d() -> nn.Module:
    body = [
        nn.Conv3d(1, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(4, 4, (3, 1, 1)),
        nn.ReLU(),
    ]
    return nn.Sequential(*body, nn.AvgPool3d(2), nn.Flatten(), nn.Linear(32, 4))


def group_norm() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.GroupNorm(1, 8), nn.GELU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def instance_norm() -> nn.Module:
    body = [
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.InstanceNorm2d(8),
    ]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def upsample() -> nn.Module:
    body = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
    ]
    smooth = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(*body, smooth, nn.Conv2d(4, 3, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pools() -> nn.Module:
    body = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)]
    means = [nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False), nn.AvgPool2d(3, stride=2, padding=1)]
    return nn.Sequential(*body, *means, nn.AdaptiveAvgPool2d((5, 1)), nn.Flatten(), nn.Linear(30, 4))


def prelu() -> nn.Module:
    body = [nn.ReflectionPad2d(1), nn.Conv2d(2, 6, 3), nn.PReLU(6), nn.Conv2d(6, 6, 3), nn.LeakyReLU(0.05), nn.Conv2d(6, 4, 3)]
    return nn.Sequential(*body, nn.PReLU(), nn.Hardshrink(0.01), nn.ConstantPad2d(1, 0.5), nn.Flatten(), nn.Linear(256, 3))


def pixel_shuffle() -> nn.Module:
    body = [nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(2, 4, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Unflatten(1, (4, 25)), nn.Linear(25, 2), nn.Flatten(), nn.Linear(8, 4))
