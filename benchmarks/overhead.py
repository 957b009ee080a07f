"""Time of PGD and APGD over the time of the bare passes that they made: what the attack itself costs.

    python benchmarks/overhead.py

On a small convolutional network on the CPU, and, where there is a CUDA device, on a ResNet-18 for 32×32 images at batch 512 in
float32 and bfloat16. The attack and the very passes that it made are timed in turn, 20 times; the median of the ratios is to be
at most 1.15. Radius and labels are such that few samples leave, so that both sides work on full batches.

Unless `--allocator system` is given, the C library is asked to keep the memory that tensors free (glibc alone). Otherwise it
hands the top of its heap back after some passes and not after others, as the last tensor happens to lie: getting it again took
15 to 26 % of the time of attack and bare passes alike, and the ratio was one of page faults (0.91 to 1.17 where the time in
user space had 1.03 to 1.07).

Seen on free cores, one thread, 20 pairs: PGD 1.037 (L∞) and 1.066 (L2), APGD 1.060 and 1.083.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable

import torch
from pgd import Counted, bare
from torch import Tensor, nn

from audit.attacks import APGD, PGD, Attack
from audit.model.wrapper import Model


class Block(nn.Module):
    """A residual block of ResNet-18 (He et al. 2016)."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.second, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        short = [nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)] if stride > 1 or inside != out else []
        self.short = nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's activations."""
        inner = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return (inner + self.short(x)).relu()  # type: ignore[no-any-return]


def resnet18() -> nn.Module:
    """Return a ResNet-18 for images of 32×32, with random weights."""
    stages = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    head = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*head, *(Block(*stage) for stage in stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def small() -> nn.Module:
    """Return a small convolutional network for images of 28×28, with random weights."""
    conv = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10))


def ratio(net: nn.Module, x: Tensor, attack: Attack, pairs: int, device: str) -> tuple[list[float], float]:
    """Return the ratios of attack to bare passes, and images a second of the attack, a backward pass each."""
    counted = Counted(net).eval().to(device)
    x = x.to(device)
    with torch.no_grad():
        y = counted(x).argmax(dim=1)
    model = Model(counted, task="classification", classes=10, output="logits", bounds=(0, 1), device=device, batch_size=len(x))
    counted.on = True
    attack(model, x, y)
    counted.on = False
    forwards, backwards = list(counted.forwards), list(counted.backwards)

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def passes() -> None:
        bare(net, x, y, forwards, backwards)

    seconds(passes)
    pairs_s = [(seconds(lambda: attack(model, x, y)), seconds(passes)) for _ in range(pairs)]
    return [ours / theirs for ours, theirs in pairs_s], sum(backwards) / statistics.median(ours for ours, _ in pairs_s)


def keep_memory() -> None:
    """Have glibc keep what is freed, and take tensors of up to 32 MiB from its heap."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", choices=("kept", "system"), default="kept")
    options = parser.parse_args()
    if options.allocator == "kept":
        keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases = [("small CNN", small(), torch.rand(options.samples, 1, 28, 28), "cpu")]
    if torch.cuda.is_available():
        x = torch.rand(512, 3, 32, 32)
        cases += [("ResNet-18", resnet18(), x, "cuda"), ("ResNet-18 bf16", resnet18().bfloat16(), x.bfloat16(), "cuda")]
    print(f"{options.steps} steps, {options.pairs} interleaved pairs; a radius at which few samples break")
    print(f"{'network':16}{'attack':12}{'ratio':>8}   {'quartiles':16}{'images/s':>10}")
    for label, net, x, device in cases:
        for norm, eps in (("linf", 1e-4), ("l2", 1e-3)):
            for attack in (PGD(norm, eps, steps=options.steps), APGD(norm, eps, steps=options.steps)):
                ratios, speed = ratio(net, x, attack, options.pairs, device)
                low, _, high = statistics.quantiles(ratios, n=4)
                kind = f"{attack.name} {norm}"
                print(
                    f"{label:16}{kind:12}{statistics.median(ratios):8.3f}   {low:5.3f} to {high:5.3f}  {speed:10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
