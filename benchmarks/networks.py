"""Third-party networks and images that several benchmarks measure on; none of them is part of the project."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as f

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


# --- architectures ----------------------------------------------------------------------------------------------------


def cnn_a() -> nn.Sequential:
    """Build the architecture of mnist_cnn_a_adv.pth and fashion_kw.pth."""
    conv = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


class LeNet5(nn.Module):
    """The architecture of advertorch's MNIST networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = f.max_pool2d(self.conv1(x).relu(), 2)
        x = f.max_pool2d(self.conv2(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())  # type: ignore[no-any-return]


class Block(nn.Module):
    """Residual block of `ResNet2B`."""

    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 16, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, 16, 1, stride=stride)) if stride > 1 else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ResNet2B(nn.Module):
    """ResNet-2B of VNN-COMP 2021, for inputs that CIFAR_MEAN and CIFAR_STD have normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(8, 2), Block(16, 1))
        self.linear1 = nn.Linear(1024, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(self.layer1(self.conv1(x).relu()).flatten(1)).relu())  # type: ignore[no-any-return]


class Normalised(nn.Module):
    """A network for CIFAR-10 that normalises its inputs, pixels in [0, 1], itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(CIFAR_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CIFAR_STD).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)  # type: ignore[no-any-return]


def weights(net: nn.Module, name: str) -> nn.Module:
    """Return the network with the weights of a shared file, in evaluation mode."""
    state = torch.load(SHARED / "models" / name, weights_only=True, map_location="cpu")
    net.load_state_dict(state.get("state_dict", state))
    return net.eval()


# --- networks with the data that they were trained for ----------------------------------------------------------------


def load(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network for pixels in [0, 1], the first `n` images of its test set, and their labels."""
    match name:
        case "mnist_cnn_a_adv":
            return weights(cnn_a(), "mnist_cnn_a_adv.pth"), *digits("mnist", n)
        case "fashion_kw":
            return weights(cnn_a(), "fashion_kw.pth"), *digits("fashion_mnist", n)
        case "lenet5_clean":
            return weights(LeNet5(), "mnist_lenet5_clntrained.pt"), *digits("mnist", n)
        case "lenet5_adv":
            return weights(LeNet5(), "mnist_lenet5_advtrained.pt"), *digits("mnist", n)
        case "cifar10_resnet2b":
            return Normalised(weights(ResNet2B(), "cifar10_resnet2b.pth")).eval(), *cifar(n)
    raise ValueError(f"no network {name!r}")


def right(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, and those of the first `n` images of its test set that it gets right."""
    net, x, y = load(name, n)
    with torch.no_grad():
        kept = net(x).argmax(dim=1) == y
    return net, x[kept], y[kept]


# --- images -----------------------------------------------------------------------------------------------------------


def digits(folder: str, n: int, part: str = "t10k") -> tuple[Tensor, Tensor]:
    """Return the first `n` images of MNIST or of a set like it, (n, 1, 28, 28) in [0, 1], and labels."""
    images = gzip.decompress((SHARED / folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((SHARED / folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:n].astype(np.float32) / 255
    return torch.tensor(x), torch.tensor(np.frombuffer(labels, np.uint8, offset=8)[:n].astype(np.int64))


def cifar(n: int) -> tuple[Tensor, Tensor]:
    """Return the first `n` images of the CIFAR-10 test set, (n, 3, 32, 32) in [0, 1], and labels."""
    from PIL import Image

    file = np.load(SHARED / "cifar10_jpeg" / "cifar10_test_jpeg.npz")
    data, ends = file["jpeg"].tobytes(), file["offsets"]
    images = [np.asarray(Image.open(io.BytesIO(data[ends[i] : ends[i + 1]]))) for i in range(n)]
    x = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return torch.tensor(x), torch.tensor(file["labels"][:n]).long()
