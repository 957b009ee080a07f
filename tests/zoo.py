"""Networks of other kinds than the demo's, small and trained in seconds: every pillar is tested on each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import audit
from audit import demo_nets


class RowLSTM(nn.Module):
    """Reads a digit as a sequence of its 8 rows: inputs of shape (n, 8, 8), an array without columns or channels."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


class RowTransformer(nn.Module):
    """Attends over the 8 rows of an image of shape (1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.zeros(8, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x[:, 0]) + self.place).mean(dim=1))


class Regressor(nn.Module):
    """Says how far diabetes progressed, from ten columns in their own units."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("std", torch.ones(10))
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 150 + 75 * self.layers((x - self.mean) / self.std)[:, 0]


def lstm() -> tuple[nn.Module, audit.Dataset]:
    x, y = _digits()
    return _trained(RowLSTM(), x[:, 0], y, epochs=12)


def transformer() -> tuple[nn.Module, audit.Dataset]:
    x, y = _digits()
    return _trained(RowTransformer(), x, y, epochs=12)


def regressor() -> tuple[nn.Module, audit.Dataset]:
    """Return a regression network that standardises its inputs itself, and scikit-learn's diabetes table."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    x, y = bunch.data.astype(np.float32), bunch.target.astype(np.float32) + 0.25  # no whole numbers: it is no class
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:300], order[300:]
    torch.manual_seed(0)
    network = Regressor()
    network.mean.copy_(torch.from_numpy(x[train].mean(axis=0)))
    network.std.copy_(torch.from_numpy(x[train].std(axis=0)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    inputs, target = torch.from_numpy(x[train]), torch.from_numpy(y[train])
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs) / 75, target / 75).backward()
        optimizer.step()
    data = audit.Dataset(x[test], y[test], columns=bunch.feature_names, reference=(x[train], y[train]))
    return network.eval(), data


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images[:, None] / 16).astype(np.float32), bunch.target


def _trained(network: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> tuple[nn.Module, audit.Dataset]:
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    demo_nets.fit(network, torch.from_numpy(x[train]), torch.from_numpy(y[train]), epochs=epochs)
    return network.eval(), audit.Dataset(x[test], y[test], reference=(x[train], y[train]), bounds=(0.0, 1.0))
