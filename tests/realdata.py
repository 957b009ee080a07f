"""Real data and third-party networks that lie beside a checkout; a test that needs a file skips where it is absent."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}, which is not here")
    return path


def mnist(part: str = "t10k") -> tuple[np.ndarray, np.ndarray]:
    """Return images in [0, 1] of shape (n, 1, 28, 28) and labels."""
    images = gzip.decompress(shared(f"mnist/{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress(shared(f"mnist/{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return x, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


class LeNet5(nn.Module):
    """The architecture of advertorch's MNIST networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(3136, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.functional.max_pool2d
        x = pool(self.conv1(x).relu(), 2)
        x = pool(self.conv2(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())


def cnn_a() -> nn.Sequential:
    """Build the architecture of mnist_cnn_a_adv.pth and fashion_kw.pth."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
