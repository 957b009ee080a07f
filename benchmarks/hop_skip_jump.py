"""HopSkipJump beside foolbox's and ART's on one MNIST network: median distance and seconds at about the same queries.

    make benchmark        # installs foolbox

Each library gets the number of iterations whose queries come nearest to the budget; all forwards are counted, those of the
search for a starting point, too. foolbox and ART have no budget of queries, so theirs differs a little from ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from networks import right
from pgd import Counted
from torch import Tensor, nn


class Single(nn.Module):
    """The network for a caller that draws its noise in float64."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits."""
        return self.net(x.float())  # type: ignore[no-any-return]


def ours(net: nn.Module, norm: str, queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return audit's HopSkipJump."""
    from audit.attacks.hop_skip_jump import HopSkipJump
    from audit.model.wrapper import Model

    model = Model(net, task="classification", classes=10, output="logits", bounds=(0, 1), device="cpu")
    attack = HopSkipJump(norm, queries=queries)  # type: ignore[arg-type]
    return lambda x, y: attack(model, x, y).x_adv


def iterations(queries: int, each: float) -> int:
    """Return how many iterations of 100·√t queries and some more go into the budget."""
    count, spent = 0, 100.0
    while spent + 100 * (count + 1) ** 0.5 + each <= queries:
        count += 1
        spent += 100 * count**0.5 + each
    return max(1, count)


def foolbox(net: nn.Module, norm: str, queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return foolbox's HopSkipJumpAttack."""
    import foolbox as fb

    model = fb.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = fb.attacks.HopSkipJumpAttack(steps=iterations(queries, 24), constraint=norm)
    return lambda x, y: attack.run(model, x, fb.criteria.Misclassification(y))


def art(net: nn.Module, norm: str, queries: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ART's HopSkipJump."""
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        Single(net), nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    order = np.inf if norm == "linf" else 2
    attack = HopSkipJump(classifier, norm=order, max_iter=iterations(queries, 24), init_eval=100, verbose=False, batch_size=256)
    return lambda x, y: torch.as_tensor(attack.generate(x.numpy(), y.numpy()))


def measure(name: str, make: Callable[..., Callable[[Tensor, Tensor], Tensor]], norm: str, n: int, queries: int) -> str:
    """Attack once; return a row of the table."""
    net, x, y = right("mnist_cnn_a_adv", 2 * n)
    x, y = x[:n], y[:n]
    counted = Counted(net).eval()
    attack = make(counted, norm, queries)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (ART draws from it)
    counted.on = True
    start = time.perf_counter()
    x_adv = attack(x, y).float()
    seconds = time.perf_counter() - start
    counted.on = False
    with torch.no_grad():
        broken = net(x_adv).argmax(dim=1) != y
    delta = (x_adv - x).flatten(1)
    distance = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    distance = torch.where(broken, distance, torch.inf)
    quarter, median, three = np.quantile(distance.numpy(), [0.25, 0.5, 0.75])
    cost = f"{sum(counted.forwards) / n:9.0f} {seconds:9.2f}"
    return f"{name:9}{norm:6}{median:9.4f}   {quarter:6.4f} to {three:6.4f}   {int(broken.sum()):3}/{n}  {cost}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--queries", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"HopSkipJump, mnist_cnn_a_adv, {options.samples} samples")
    print(f"{'library':9}{'norm':6}{'median':>9}   {'quartiles':16}   broken  {'queries':>9} {'seconds':>9}")
    for queries in options.queries:
        for norm in ("l2", "linf"):
            for make in (ours, foolbox, art):
                try:
                    print(measure(make.__name__, make, norm, options.samples, queries), flush=True)
                except ImportError as error:
                    print(f"{make.__name__:9}not installed: {error}")


if __name__ == "__main__":
    main()
