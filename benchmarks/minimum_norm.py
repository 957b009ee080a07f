"""Attacks of minimum norm beside foolbox's and torchattacks' on the same networks at equal passes: the median distance.

    make benchmark        # installs foolbox, and torchattacks without its dependencies (it would pull torchvision)
    python benchmarks/minimum_norm.py --networks lenet5_clean --steps 100 --samples 100

A budget of `steps` is 2 · steps passes a sample, forwards and backwards together, counted by hooks for every attack. The
settings of each attack are its own defaults but for the number of its steps, which is set to fill the budget. The distance of a
sample that an attack did not break is infinite, and the median is over all samples that the network gets right.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Attack = Callable[[Tensor, Tensor], Tensor]
NORMS = ("linf", "l2", "l1", "l0")
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}


class Counted(nn.Module):
    """The network, and a count of the forwards and backwards that went through it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits."""
        self.forwards += len(x)
        out = self.net(x)
        if out.requires_grad:
            # A hook on the output counts a backward for each class that is asked for one by one, too.
            out.register_hook(self._backward)
        return out  # type: ignore[no-any-return]

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class LeNet5(nn.Module):
    """The architecture of advertorch's MNIST networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())  # type: ignore[no-any-return]


def cnn_a() -> nn.Module:
    """Build the architecture of mnist_cnn_a_adv.pth and fashion_kw.pth."""
    conv = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "lenet5_clean": (LeNet5, "mnist_lenet5_clntrained.pt", "mnist"),
    "lenet5_adv": (LeNet5, "mnist_lenet5_advtrained.pt", "mnist"),
    "cnn_a_adv": (cnn_a, "mnist_cnn_a_adv.pth", "mnist"),
    "fashion_kw": (cnn_a, "fashion_kw.pth", "fashion_mnist"),
}


def load(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, and those of the first `n` images of the test set that it gets right."""
    build, weights, folder = NETWORKS[name]
    net = build()
    net.load_state_dict(torch.load(SHARED / "models" / weights, weights_only=True, map_location="cpu"))
    net.eval()
    images = np.frombuffer(gzip.decompress((SHARED / folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((SHARED / folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    x = torch.tensor(images.reshape(-1, 1, 28, 28)[:n].astype(np.float32) / 255)
    y = torch.tensor(labels[:n].astype(np.int64))
    with torch.no_grad():
        right = net(x).argmax(dim=1) == y
    return net, x[right], y[right]


def ours(net: nn.Module, norm: Any, steps: int) -> Iterator[tuple[str, Attack]]:
    """Yield audit's attacks of one norm."""
    from audit.attacks.base import MinimumNormAttack
    from audit.attacks.ddn import DDN
    from audit.attacks.fmn import FMN
    from audit.attacks.sigma_zero import SigmaZero
    from audit.model.wrapper import Model

    model = Model(net, task="classification", classes=10, output="logits", bounds=(0, 1), device="cpu", batch_size=4096)
    kinds: list[type[MinimumNormAttack]] = [FMN, DDN, SigmaZero]
    for kind in kinds:
        if norm in kind.norms:
            attack: Any = kind(norm, steps=steps)
            yield f"audit {kind.__name__}", lambda x, y, attack=attack: attack(model, x, y).x_adv


def foolbox(net: nn.Module, norm: str, steps: int) -> Iterator[tuple[str, Attack]]:
    """Yield foolbox's attacks of one norm; passes of a step were counted: EAD and C&W search for a constant in 5 rounds."""
    import foolbox as fb

    a, rounds = fb.attacks, 5

    def start() -> Any:
        # By default it looks at 1,000 points on the way to its start.
        return a.LinearSearchBlendedUniformNoiseAttack(steps=50)

    makes: dict[str, dict[str, Callable[[], Any]]] = {
        "linf": {
            "FMN": lambda: a.LInfFMNAttack(steps=steps),
            "DeepFool": lambda: a.LinfDeepFoolAttack(steps=50),
            "BrendelBethge": lambda: a.LinfinityBrendelBethgeAttack(init_attack=start(), steps=steps - 40),
        },
        "l2": {
            "FMN": lambda: a.L2FMNAttack(steps=steps),
            "DDN": lambda: a.DDNAttack(steps=steps),
            "C&W": lambda: a.L2CarliniWagnerAttack(binary_search_steps=rounds, steps=steps // rounds),
            "DeepFool": lambda: a.L2DeepFoolAttack(steps=50),
            "BrendelBethge": lambda: a.L2BrendelBethgeAttack(init_attack=start(), steps=steps - 40),
        },
        "l1": {
            "FMN": lambda: a.L1FMNAttack(steps=steps),
            "EAD": lambda: a.EADAttack(binary_search_steps=rounds, steps=2 * steps // (3 * rounds), decision_rule="L1"),
            "BrendelBethge": lambda: a.L1BrendelBethgeAttack(init_attack=start(), steps=steps - 40),
        },
        "l0": {
            "FMN": lambda: a.L0FMNAttack(steps=steps),
            "BrendelBethge": lambda: a.L0BrendelBethgeAttack(init_attack=start(), steps=steps - 40),
        },
    }
    model = fb.PyTorchModel(net, bounds=(0, 1), device="cpu")
    for name, make in makes[norm].items():
        attack = make()
        yield f"foolbox {name}", lambda x, y, attack=attack: attack(model, x, y, epsilons=None)[1]


def torchattacks(net: nn.Module, norm: str, steps: int) -> Iterator[tuple[str, Attack]]:
    """Yield torchattacks' attacks of one norm; modules that it imports but that these do not use are left out.

    FAB takes a backward for each of the 10 classes in a step; with targets it takes one, and leaves samples that are broken.
    """
    for name in ("torchvision", "torchvision.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    import torchattacks as ta

    if norm in ("linf", "l2"):  # its FAB stops with an error in L1
        kind = {"linf": "Linf", "l2": "L2"}[norm]
        yield "torchattacks FAB", ta.FAB(net, norm=kind, eps=1e9, steps=max(1, 2 * steps // 12), n_classes=10)
        targeted = ta.FAB(net, norm=kind, eps=1e9, steps=max(1, steps // 2), n_classes=10, multi_targeted=True)
        yield "torchattacks FAB targeted", targeted
    if norm == "l2":
        yield "torchattacks C&W", ta.CW(net, steps=steps)
        yield "torchattacks DeepFool", ta.DeepFool(net)
    if norm == "l1":
        yield "torchattacks EADL1", ta.EADL1(net, binary_search_steps=5, max_iterations=2 * steps // 15)
    if norm == "l0":
        yield "torchattacks SparseFool", ta.SparseFool(net)


def measure(net: nn.Module, x: Tensor, y: Tensor, attack: Attack, counted: Counted, norm: str) -> str:
    """Run an attack once; return median distance, share broken, passes a sample and seconds."""
    counted.forwards = counted.backwards = 0
    start = time.perf_counter()
    x_adv = attack(x, y).detach().float()
    seconds, forwards, backwards = time.perf_counter() - start, counted.forwards / len(x), counted.backwards / len(x)
    with torch.no_grad():
        broken = net(x_adv).argmax(dim=1) != y
    inside = (x_adv >= -1e-6).flatten(1).all(dim=1) & (x_adv <= 1 + 1e-6).flatten(1).all(dim=1)
    delta = (x_adv.double() - x.double()).flatten(1)
    distance = torch.linalg.vector_norm(delta, ord=ORDER[norm], dim=1).where(broken & inside, torch.inf)
    middle = float(np.median(distance.numpy()))
    share = float((broken & inside).double().mean())
    return f"{middle:9.4f} {share:7.1%} {forwards:8.0f} {backwards:8.0f} {seconds:8.1f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--libraries", nargs="+", choices=["ours", "foolbox", "torchattacks"])
    parser.add_argument("--skip", nargs="*", default=[], help="attacks whose name contains one of these words are left out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    libraries = {"ours": ours, "foolbox": foolbox, "torchattacks": torchattacks}
    for name in options.networks:
        net, x, y = load(name, options.samples)
        counted = Counted(net).eval()
        for steps in options.steps:
            for norm in options.norms:
                print(f"\n{name}, {norm}, {len(x)} samples, {2 * steps} passes a sample")
                print(f"{'attack':28}{'median':>9} {'broken':>7} {'forwards':>8} {'backw.':>8} {'seconds':>8}")
                for library in options.libraries or libraries:
                    try:
                        for label, attack in libraries[library](counted, norm, steps):
                            if any(word in label for word in options.skip):
                                continue
                            torch.manual_seed(0)
                            print(f"{label:28}{measure(net, x, y, attack, counted, norm)}", flush=True)
                    except ImportError as error:
                        print(f"{library:28}not installed: {error}")


if __name__ == "__main__":
    main()
