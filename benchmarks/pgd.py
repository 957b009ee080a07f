"""PGD-40 beside ART's, foolbox's and torchattacks' on one MNIST network: seconds over the bare passes that each one makes.

    make benchmark        # installs foolbox, and torchattacks without its dependencies (it would pull torchvision)

For each library the attack and, interleaved with it, the very forward and backward passes that it made (counted by hooks, by
batch size) are timed; the ratio of the two says what the library adds. It prints the median of 20 pairs and the share of
samples that each attack broke.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from networks import right
from torch import Tensor, nn

EPS, STEP, STEPS = 0.3, 0.01, 40


class Counted(nn.Module):
    """The network, and a record of the batch sizes of the forwards and backwards that went through it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards: list[int] = []
        self.backwards: list[int] = []
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits."""
        if self.on:
            self.forwards.append(len(x))
            if torch.is_grad_enabled() and x.requires_grad:
                x.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return self.net(x)  # type: ignore[no-any-return]


def bare(net: nn.Module, x: Tensor, y: Tensor, forwards: list[int], backwards: list[int]) -> None:
    """Make just these passes: a forward with the loss's gradient for each backward, and the rest of the forwards alone."""
    alone = list(forwards)
    for size in backwards:
        alone.remove(size)
        leaf = x[:size].clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(leaf), y[:size], reduction="sum")
        torch.autograd.grad(loss, leaf)
    with torch.no_grad():
        for size in alone:
            net(x[:size])


def ours(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return audit's PGD."""
    from audit.attacks import PGD
    from audit.model.wrapper import Model

    model = Model(net, task="classification", classes=10, output="logits", bounds=(0, 1), device="cpu", batch_size=4096)
    attack = PGD("linf", EPS, steps=STEPS, step_size=STEP)
    return lambda x, y: attack(model, x, y).x_adv


def art(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ART's PGD for PyTorch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=4096, verbose=False
    )
    return lambda x, y: torch.as_tensor(attack.generate(x.numpy(), y.numpy()))


def foolbox(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return foolbox's LinfPGD."""
    import foolbox as fb

    model = fb.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = fb.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)

    def run(x: Tensor, y: Tensor) -> Tensor:
        _, clipped, _ = attack(model, x, y, epsilons=EPS)
        return clipped  # type: ignore[no-any-return]

    return run


def torchattacks(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return torchattacks' PGD; the modules that it imports but PGD does not use are left out."""
    for name in ("torchvision", "torchvision.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    import torchattacks as ta

    return ta.PGD(net, eps=EPS, alpha=STEP, steps=STEPS)  # type: ignore[no-any-return]


def measure(name: str, make: Callable[[nn.Module], Any], n: int, pairs: int) -> str:
    """Time the attack and its bare passes in turn; return a row of the table."""
    net, x, y = right("mnist_cnn_a_adv", 2 * n)
    x, y = x[:n], y[:n]
    counted = Counted(net)
    attack = make(counted)
    counted.on = True
    x_adv = attack(x, y)
    counted.on = False
    forwards, backwards = list(counted.forwards), list(counted.backwards)
    bare(net, x, y, forwards, backwards)
    ratios = []
    for _ in range(pairs):
        start = time.perf_counter()
        attack(x, y)
        middle = time.perf_counter()
        bare(net, x, y, forwards, backwards)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    with torch.no_grad():
        broken = float((net(x_adv.float()).argmax(dim=1) != y).float().mean())
    low, high = np.quantile(ratios, [0.25, 0.75])
    per_sample = f"{sum(forwards) / n:6.1f} {sum(backwards) / n:6.1f}"
    return f"{name:14}{statistics.median(ratios):8.3f}   {low:5.3f} to {high:5.3f}   {per_sample}   {broken:7.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"PGD-{STEPS}, L-inf {EPS}, mnist_cnn_a_adv, {options.samples} samples, {options.pairs} interleaved pairs")
    print(f"{'library':14}{'ratio':>8}   {'quartiles':14}   {'fwd':>6} {'bwd':>6}   broken")
    for make in (ours, torchattacks, art, foolbox):
        try:
            print(measure(make.__name__, make, options.samples, options.pairs), flush=True)
        except ImportError as error:
            print(f"{make.__name__:14}not installed: {error}")


if __name__ == "__main__":
    main()
