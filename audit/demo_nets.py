"""Two small networks and the data that they are trained on: what ``audit demo`` audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class DigitsNet(nn.Module):
    """A small convolutional network for 8×8 grey images of the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, 10)."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class TableNet(nn.Module):
    """A small network for rows of numbers that standardises its inputs itself, so that it takes them in their own units."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int = 10, classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.layers = nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, classes)."""
        return self.layers((x - self.mean) / self.std)  # type: ignore[no-any-return]


def make_digits(folder: Path, seed: int = 0) -> None:
    """Train DigitsNet on two thirds of scikit-learn's digits; write train.npz, test.npz and model.pt."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[:, None] / 16).astype(np.float32)
    train, test = _split(len(x), 2 / 3, seed)
    np.savez_compressed(folder / "train.npz", x=x[train], y=bunch.target[train])
    np.savez_compressed(folder / "test.npz", x=x[test], y=bunch.target[test])
    torch.manual_seed(seed)
    network = DigitsNet()
    fit(network, torch.from_numpy(x[train]), torch.from_numpy(bunch.target[train]), epochs=30, seed=seed)
    torch.save(network.state_dict(), folder / "model.pt")


def make_diabetes(folder: Path, seed: int = 0) -> None:
    """Train TableNet to tell whether diabetes progressed above the median; write train.csv, test.csv and model.pt."""
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["progression_above_median"] = (frame["target"] > frame["target"].median()).astype(int)
    frame = frame.drop(columns="target")
    train, test = _split(len(frame), 0.6, seed)
    frame.iloc[train].to_csv(folder / "train.csv", index=False)
    frame.iloc[test].to_csv(folder / "test.csv", index=False)
    x = torch.tensor(frame.iloc[train, :10].to_numpy(np.float32))
    y = torch.tensor(frame["progression_above_median"].to_numpy()[train])
    torch.manual_seed(seed)
    network = TableNet(columns=10)
    network.mean.copy_(x.mean(dim=0))
    network.std.copy_(x.std(dim=0))
    fit(network, x, y, epochs=40, weight_decay=0.05, seed=seed)
    torch.save(network.state_dict(), folder / "model.pt")


def fit(network: nn.Module, x: Tensor, y: Tensor, *, epochs: int, weight_decay: float = 0.0, seed: int = 0) -> None:
    """Train with AdamW on cross-entropy, 64 samples a batch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=weight_decay)
    network.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), 64):
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(network(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
    network.eval()


def _split(n: int, share: float, seed: int) -> tuple[Any, Any]:
    order = np.random.default_rng(seed).permutation(n)
    cut = round(n * share)
    return np.sort(order[:cut]), np.sort(order[cut:])
