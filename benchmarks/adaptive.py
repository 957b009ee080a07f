"""The adaptive evaluation beside AutoAttack: robust accuracy and passes an image, over seeds.

    python benchmarks/adaptive.py --seeds 0 1 2                     # all rows: an hour on one core
    python benchmarks/adaptive.py --only mnist_cnn_a_adv --profile standard
    python benchmarks/adaptive.py --trained                         # three networks made here, with both evaluations

AutoAttack's figures are constants: those marked * are of the authors' own code (github.com/fra31/auto-attack at a392200,
version ``standard``), whose FAB makes more forwards; the others of ``evaluation="autoattack"``, seed 0. The aim is no higher an
accuracy at a tenth of the forwards and a fifth of the backwards. Measured so far, forwards and backwards of the dearest seed:

    network          norm radius    n   AutoAttack  fwd   bwd   adaptive, seeds 0 1 2        fwd  bwd
    mnist_cnn_a_adv  L∞   0.3     300      72.67 %* 5775  1389  72.33 % 72.00 % 72.00 %      458  248
    mnist_cnn_a_adv  L2   1.5     300      49.33 %* 4383  1244  36.00 % 36.33 % 36.00 %      233  215
    fashion_kw       L∞   0.1     300      68.33 %* 5426  1340  68.33 % 68.33 % 68.33 %      237  140
    cifar10_resnet2b L∞   2/255   300      51.00 %* 4031   991  51.00 % 51.00 % 51.00 %      159   96
    cifar10_resnet2b L2   0.25    100      44.00 %  3053   838  44.00 % 44.00 %              121  112
    lenet5_adv       L∞   0.3     100      89.00 %* 7049  1731  89.00 % 89.00 % 89.00 %      581  312
    dense            L∞   0.1     150      80.00 %  5546  1522  80.00 % 80.00 % 80.00 %      153  104
    dense            L2   1.0     150      80.67 %  5593  1535  80.67 % 80.67 %              201  187
    residual         L∞   0.05    150      68.67 %  4760  1306  68.67 % 68.67 % 68.67 %      145   96
    patches          L∞   0.15    150      56.00 %  3887  1068  56.00 % 56.00 % 56.00 %      133   86

On lenet5_adv 663 and 350 passes were needed while the last focus took at least 4 samples; it takes 3 now, which is in the
figures of that row alone.
At ``standard`` (seed 0) mnist_cnn_a_adv L∞ took 132 and 78 passes for 73.00 %, fashion_kw 127 and 74 for 69.00 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from networks import digits, load
from torch import Tensor, nn
from torch.nn import functional as f

import audit
from audit.attacks.geometry import Norm
from audit.evaluations.base import Profile

BATCH = 100


@dataclass(frozen=True)
class Row:
    """A network with samples and a threat model; AutoAttack's accuracy, forwards and backwards a sample, where known."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    norm: Norm
    eps: float
    known: tuple[float, float, float] | None = None
    original: bool = False

    def model(self) -> audit.Model:
        """Return the network as it is attacked."""
        return audit.Model(self.net, task="classification", output="logits", bounds=(0, 1), device="cpu", batch_size=BATCH)


def shared() -> Iterator[Row]:
    """Yield the networks that others trained."""
    # 72.67, 72.33 and 73.00 % in three runs of the authors' code.
    yield Row("mnist_cnn_a_adv", *load("mnist_cnn_a_adv", 300), "linf", 0.3, (0.7267, 5775, 1389), original=True)
    yield Row("mnist_cnn_a_adv", *load("mnist_cnn_a_adv", 300), "l2", 1.5, (0.4933, 4382.6, 1244.4), original=True)
    yield Row("fashion_kw", *load("fashion_kw", 300), "linf", 0.1, (0.6833, 5426, 1340.4), original=True)
    yield Row("cifar10_resnet2b", *load("cifar10_resnet2b", 300), "linf", 2 / 255, (0.51, 4031.4, 990.6), original=True)
    yield Row("lenet5_adv", *load("lenet5_adv", 100), "linf", 0.3, (0.89, 7049.3, 1731.1), original=True)


class Dense(nn.Module):
    """Smooth units, no convolution."""

    def __init__(self) -> None:
        super().__init__()
        middle = [nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 64), nn.GELU()]
        self.layers = nn.Sequential(nn.Flatten(), *middle, nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.layers(x - 0.3)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Batch norms and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.BatchNorm2d(12)
        self.conv1, self.norm1 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.conv3, self.norm3 = nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.norm0(self.conv0(x)).relu()
        x = (x + self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        x = self.norm3(self.conv3(x)).relu()
        return self.head(f.adaptive_avg_pool2d(x, 4).flatten(1))  # type: ignore[no-any-return]


class Patches(nn.Module):
    """A transformer over 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, 32, 7, stride=7), nn.Parameter(torch.zeros(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.encoder(self.patch(x).flatten(2).transpose(1, 2) + self.place).flatten(1))  # type: ignore[no-any-return]


def trained() -> Iterator[Row]:
    """Yield networks that are made here: two epochs of adversarial training, some minutes each."""
    for name, kind, folder, eps, n in (
        ("dense", Dense, "mnist", 0.1, 60_000),
        ("residual", Residual, "fashion_mnist", 0.05, 20_000),
        ("patches", Patches, "mnist", 0.15, 20_000),
    ):
        torch.manual_seed(0)
        net = kind()
        _train(net, *digits(folder, n, "train"), eps)
        yield Row(name, net.eval(), *digits(folder, 150), "linf", eps)


def _train(net: nn.Module, x: Tensor, y: Tensor, eps: float, epochs: int = 2, batch: int = 128) -> None:
    """Train on three steps of PGD whose radius grows over the first 60 % of the steps."""
    optimizer, steps, done = torch.optim.Adam(net.parameters()), epochs * (len(x) // batch), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch)[: len(x) // batch]:
            done += 1
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - done / steps) + 1e-5
            reach = eps * min(1.0, done / (0.6 * steps))
            inputs, labels = x[rows], y[rows]
            delta = (torch.rand_like(inputs) * 2 - 1) * reach
            for _ in range(3):
                point = (inputs + delta).clamp(0, 1).requires_grad_(True)
                (gradient,) = torch.autograd.grad(f.cross_entropy(net(point), labels), point)
                delta = (delta + 0.5 * reach * gradient.sign()).clamp(-reach, reach)
            optimizer.zero_grad()
            f.cross_entropy(net((inputs + delta).clamp(0, 1)), labels).backward()
            optimizer.step()


def line(row: Row, seeds: list[int], profile: Profile) -> str:
    """Measure one network."""
    known, mark = row.known, "*" if row.original else " "
    if known is None:
        out = audit.robust_accuracy(row.model(), row.x, row.y, norm=row.norm, eps=row.eps, evaluation="autoattack")
        known = (out.accuracy, out.forwards / len(row.x), out.backwards / len(row.x))
    began, found = time.perf_counter(), []
    for seed in seeds:
        found.append(audit.robust_accuracy(row.model(), row.x, row.y, norm=row.norm, eps=row.eps, profile=profile, seed=seed))
    seconds = (time.perf_counter() - began) / len(seeds)
    forwards, backwards = (max(getattr(one, name) for one in found) / len(row.x) for name in ("forwards", "backwards"))
    shares = " ".join(f"{one.accuracy:7.2%}" for one in found)
    theirs = f"{known[0]:7.2%}{mark}{known[1]:6.0f} {known[2]:5.0f}"
    ratios = f"1/{known[1] / forwards:<5.1f} 1/{known[2] / max(backwards, 1e-9):<5.1f}"
    head = f"{row.name:17}{row.norm:5}{row.eps:<8.4g}{len(row.x):5}"
    return f"{head}  {theirs}   {shares}  {forwards:5.0f} {backwards:5.0f}   {ratios}{seconds:6.0f}"


def main() -> None:
    """Print the table; passes are of the dearest seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--profile", choices=["quick", "standard", "thorough", "exhaustive"], default="thorough")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wide = 8 * len(options.seeds)
    print(
        f"{'network':17}{'norm':5}{'radius':8}{'n':>5}  {'AutoAttack':>8} {'fwd':>5} {'bwd':>5}   "
        f"{'adaptive':{wide}} {'fwd':>5} {'bwd':>5}   {'fwd':7} {'bwd':7}{'s':>6}"
    )
    for row in trained() if options.trained else shared():
        if options.only in (None, row.name):
            print(line(row, options.seeds, options.profile), flush=True)


if __name__ == "__main__":
    main()
