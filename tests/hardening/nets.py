"""Tiny networks on scikit-learn's digits that are hardened in a second, and their data."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn

import audit
from audit import demo_nets


def digits(n_train: int = 700, n_test: int = 300) -> audit.Dataset:
    """Return images of shape (1, 8, 8) in [0, 1], with a reference part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:n_train], order[n_train : n_train + n_test]
    return audit.Dataset(x[test], bunch.target[test], reference=(x[train], bunch.target[train]), bounds=(0.0, 1.0))


def mlp(width: int = 48) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def bare(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp()


@functools.cache
def _trained_weights(seed: int) -> dict[str, Tensor]:
    network, data = bare(seed), digits()
    assert data.reference is not None
    demo_nets.fit(network, torch.from_numpy(data.reference.x), torch.from_numpy(data.reference.y), epochs=20, seed=seed)
    return network.state_dict()


def trained(seed: int = 0) -> nn.Sequential:
    """Return an MLP that was trained on clean digits; a copy of its own each time."""
    network = mlp()
    network.load_state_dict(_trained_weights(seed))
    return network.eval()


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def bits(module: nn.Module) -> dict[str, bytes]:
    """Return the bytes of all parameters and buffers, to compare networks bit for bit."""
    return {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in module.state_dict().items()}
