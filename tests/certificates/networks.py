"""Random small networks of every layer that has a bound."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as f

import audit
from audit.attacks.geometry import ThreatModel


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.short = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.one(x)))
        z = self.two(y)
        z += self.short(y)
        return self.head(f.adaptive_avg_pool2d(self.relu(z), 2).flatten(1))


class Mixed(nn.Module):
    """Concatenation, parts, permutation, constants, leaky ReLU, abs, means, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=1)
        self.register_buffer("shift", torch.randn(3, 1, 1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = f.leaky_relu((self.conv(x) - self.shift) / 0.7, 0.2)
        y = torch.cat([y, -y.abs(), 2 - y[:, :2] * 3], dim=1)[:, 1:]
        y = y.permute(0, 2, 3, 1) - y.mean(dim=(2, 3))[:, None, None, :]
        y = f.pad(y.transpose(1, 3), (0, 0, 0, 0, 1, 0))[:, 1:]
        return self.head(self.drop(y.flatten(1)[:, :60]))


def mlp(activation: type[nn.Module] = nn.ReLU, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 12), activation(), nn.Linear(12, 10), activation(), nn.Linear(10, classes))


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.Conv2d(4, 3, 2),
        nn.Hardtanh(-0.5, 0.7),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(27, 3),
    )


def pooled_first() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 3))


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2),
        nn.ReLU6(),
        nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, 3), nn.Softmax(dim=1),
    )  # fmt: skip


NETWORKS = {
    "mlp": mlp,
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "tanh": lambda: mlp(nn.Tanh),
    "leaky": lambda: mlp(nn.LeakyReLU),
    "one logit": lambda: mlp(classes=1),
    "one probability": lambda: nn.Sequential(mlp(classes=1), nn.Sigmoid()),
    "residual": Residual,
    "mixed": Mixed,
    "pooled": pooled,
    "pooled first": pooled_first,
    "transposed, softmax": transposed,
}


def network(name: str, seed: int) -> audit.Model:
    """Return a network for inputs (2, 6, 6) in [0, 1], with a mean and std, its weights and statistics random."""
    torch.manual_seed(seed)
    module = NETWORKS[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 2.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    module.eval()
    output = {"one logit": "binary_logit", "one probability": "binary_probability"}.get(name)
    model = audit.Model(
        module, task="classification", output=output, bounds=(0, 1), mean=(0.4, 0.5), std=(0.3, 0.4), device="cpu"
    )
    model.resolve(samples(seed)[0])
    return model


def samples(seed: int, n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, 2, 6, 6), generator=generator), torch.arange(n)


def threat(eps: float, norm: str = "linf") -> ThreatModel:
    return ThreatModel(norm, eps, np.array(0.0), np.array(1.0))  # type: ignore[arg-type]
