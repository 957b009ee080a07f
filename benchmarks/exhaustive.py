"""What the exhaustive rounds settle of the samples that AutoAttack leaves standing and CROWN leaves open.

    python benchmarks/exhaustive.py --cache FOLDER                       # AutoAttack runs once, and is kept in FOLDER
    python benchmarks/exhaustive.py --cache FOLDER --only mnist_2_20

AutoAttack is this package's own, with the authors' attacks and budgets (benchmarks/autoattack.py holds it against the
original). Of what stands after it, half of `--samples` are those whose margin it brought nearest to 0, the rest is evenly
spread over the others. The rounds take turns on them until each is broken or certified, or until `--seconds` of processor
time for each of them are spent.

Seen on the first 300 test images (one thread of a busy machine; a bound pass counts as 20 forwards):

- mnist_2_20 at 0.08: AutoAttack leaves 208 standing, at 4,827 forwards and 1,325 backwards an image. The first round of
  branching settles all: it breaks image 96, and certifies the other 207, in 0.02 s each (222 passes).
- mnist_cnn_a_adv at 0.3: AutoAttack leaves 217 standing, at 5,035 forwards and 1,389 backwards an image. Of 48 of them the
  adaptive rounds of the exhaustive profile (``--adaptive``) broke 1; the first round of branching broke none and certified 9,
  in 1.56 s each (22,225 passes). With up to 1,000 parts a class branching alone broke image 187 in 6.8 s (113,552 forwards,
  almost all of them bound passes, and 1,070 backwards), which the climbs from where bounds are lowest found: without them its
  margin ended at -0.126 after 400 parts, with them at -0.017.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from certificates import SHARED, cnn_a, digits, weights
from numpy.typing import NDArray
from torch import Tensor, nn

import audit
from audit.attacks.geometry import ThreatModel
from audit.certificates.certify import FORWARDS
from audit.evaluations.adaptive import adaptive
from audit.evaluations.base import Found, Job, Known, Round
from audit.evaluations.exhaustive import exhaustive


def mnist_2_20() -> nn.Module:
    """Build the architecture of mnist_2_20.pth."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))


def setting(name: str) -> tuple[audit.Model, float]:
    """Return a network and its radius in L∞."""
    common = {"output": "logits", "bounds": (0, 1), "device": "cpu", "batch_size": 300}
    if name.startswith("mnistfc"):
        return audit.Model.load(SHARED / "models" / f"{name}.onnx", **common), 0.05  # type: ignore[arg-type]
    net, eps = (cnn_a(), 0.3) if name == "mnist_cnn_a_adv" else (mnist_2_20(), 0.08)
    return audit.Model(weights(net, f"{name}.pth"), **common), eps  # type: ignore[arg-type]


def autoattack(name: str, n: int, cache: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64], float, float]:
    """Return which of the first `n` images stand after AutoAttack, its margins, and forwards and backwards an image."""
    path = cache / f"autoattack_{name}_{n}.npz"
    if not path.exists():
        model, eps = setting(name)
        out = audit.robust_accuracy(model, *digits("mnist", n), eps=eps, evaluation="autoattack")
        standing = out.right & ~out.broken
        np.savez(path, standing=standing, margin=out.margin, passes=np.array([out.forwards / n, out.backwards / n]))
    kept = np.load(path)
    return kept["standing"], kept["margin"], *kept["passes"].tolist()


@dataclass
class Work:
    """Samples that stand, and what the rounds did to them."""

    model: audit.Model
    x: Tensor
    y: Tensor
    ids: NDArray[np.int64]
    threat: ThreatModel
    seconds: float

    def rounds(self, rounds: list[Round]) -> Iterator[tuple[str, int, int, int, int, float]]:
        """Run the rounds in blocks of one sample; yield name, samples, broken, certified, passes and seconds of each."""
        n, done = len(self.ids), list[Found]()
        self.broken, self.certified = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        spent = 0.0
        for one in rounds:
            known = Known.of(~self.certified, done)
            at = np.sort(one.choose(known))
            began, passes, parts = time.process_time(), self.model.forwards + self.model.backwards, list[Found]()
            for p in at:
                if spent + time.process_time() - began > self.seconds * n:
                    break
                where = np.array([p])
                job = Job(self.model, self.x[where], self.y[where], torch.from_numpy(self.ids[where]), where, self.threat)
                parts.append(Found(where, one(job, known)))
            if not parts:
                return
            rows = Found(
                np.concatenate([part.positions for part in parts]),
                {name: np.concatenate([part[name] for part in parts]) for name in parts[0].arrays},
            )
            done.append(rows)
            self.broken[rows.positions[rows["broken"]]] = True
            if "certified" in rows.arrays:
                self.certified[rows.positions[rows["certified"]]] = True
            took = time.process_time() - began
            spent += took
            passes = self.model.forwards + self.model.backwards - passes
            yield one.name, len(rows.positions), int(self.broken.sum()), int(self.certified.sum()), passes, took
        if (self.broken & self.certified).any():
            raise RuntimeError("a sample is both broken and certified")


def chosen(standing: NDArray[np.bool_], margin: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return the standing samples that are nearest to being broken, and as many evenly spread over the others."""
    places = np.flatnonzero(standing)
    order = places[np.argsort(-margin[places], kind="stable")]
    near, rest = order[: most // 2], np.sort(order[most // 2 :])
    spread = rest[np.linspace(0, len(rest) - 1, min(len(rest), most - len(near))).round().astype(int)] if len(rest) else rest
    return np.sort(np.concatenate([near, spread]))


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", default="mnist_cnn_a_adv,mnist_2_20")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--adaptive", action="store_true", help="run the adaptive rounds first, as the profile does")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = digits("mnist", options.images)
    for name in options.only.split(","):
        standing, margin, forwards, backwards = autoattack(name, options.images, options.cache)
        model, eps = setting(name)
        model.resolve(x[:8])
        ids = chosen(standing, margin, options.samples)
        print(
            f"{name}, L∞ {eps}: {standing.sum()} of {options.images} stand after AutoAttack ({forwards:.0f} forwards, "
            f"{backwards:.0f} backwards an image); {len(ids)} of them, {options.seconds:g} s each\n"
            f"{'round':12}{'samples':>9}{'broken':>8}{'certified':>11}{'passes a sample':>17}{'s a sample':>12}",
            flush=True,
        )
        work = Work(model, x[ids], y[ids], ids, ThreatModel("linf", eps, np.zeros(1), np.ones(1)), options.seconds)
        rounds = [*(adaptive("exhaustive") if options.adaptive else []), *exhaustive()]
        for row, samples, broken, certified, passes, seconds in work.rounds(rounds):
            print(
                f"{row:12}{samples:9d}{broken:8d}{certified:11d}{passes / samples:17.0f}{seconds / samples:12.2f}", flush=True
            )
        left = ~work.broken & ~work.certified
        print(f"broken {ids[work.broken].tolist()}, open {ids[left].tolist()}\nbound passes count {FORWARDS} each", flush=True)


if __name__ == "__main__":
    main()
