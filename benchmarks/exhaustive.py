"""What the exhaustive rounds settle of the samples that AutoAttack leaves standing and CROWN leaves open.

    python benchmarks/exhaustive.py --cache FOLDER                       # AutoAttack runs once, and is kept in FOLDER
    python benchmarks/exhaustive.py --cache FOLDER --only mnist_2_20
    python benchmarks/exhaustive.py --boxes --seconds 30                 # boxes whose outcome is known

AutoAttack is this package's own, with the authors' attacks and budgets (benchmarks/autoattack.py holds it against the
original). Of what stands after it, half of `--samples` are those whose margin it brought nearest to 0, the rest is evenly
spread over the others. The rounds take turns on them until each is broken or certified, or until `--seconds` of processor
time for each of them are spent.

Seen on the first 300 test images (one thread of a busy machine; a bound pass counts as 20 forwards):

- mnist_2_20 at 0.08: AutoAttack leaves 208 standing, at 4,827 forwards and 1,325 backwards an image. The first round of
  branching settles all: it breaks image 96, and certifies the other 207, in 0.02 s each (222 passes).
- mnist_cnn_a_adv at 0.3: AutoAttack leaves 217 standing, at 5,035 forwards and 1,389 backwards an image. Of 48 of them the
  rounds broke 3 (105, 187, 273), certified 23 and left 22 open, in 12 s of processor time each. The first round of branching
  certified 18, in 1.5 s (30,992 passes, almost all of them bound passes); without the bounds of hidden neurons tightened it had
  been 9. The second (up to 256 parts a class) broke 1 and certified 4 more, walks broke 2 in 3.1 s each, 1,024 parts a class
  settled nothing, and 4,096 parts certified 1 of 4 in 22 s each. A part takes 2.8 ms: a quarter are gradients, an eighth
  transposed convolutions, most of the rest operations on each of the 4,804 units. What gained nothing at equal time: hidden
  layers' bounds made anew for each part, 2, 3 or 6 steps in place of 4, 8 or 32 parts at once, 20 steps of tightening.

Seen with ``--boxes --seconds 30`` (the exhaustive rounds alone, wall-clock time, one thread of a busy machine):

- AutoAttack breaks 16 of the 17 violated boxes, the adaptive rounds 15 (16 with seeds 1, 2 and 3), the exhaustive ones all, 12
  of them within 5 s and the last in 12 s. AutoAttack takes 2,780 to 6,436 forwards and 766 to 1,765 backwards a box, the
  adaptive rounds 100 to 245 and 69 to 162.
- Of the 34 that hold 25 are certified: 17 of 18 of 256x2, 15 of them within 5 s, and 8 of 16 of 256x4, 7 within 5 s.
- No box that holds was broken, and none that is violated certified.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import SHARED, cnn_a, digits, weights
from numpy.typing import NDArray
from torch import Tensor, nn

import audit
from audit.attacks.base import output_of
from audit.attacks.geometry import ThreatModel
from audit.budget import until
from audit.certificates.certify import FORWARDS
from audit.errors import BudgetSpent
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


@dataclass
class Boxes:
    """The boxes of one network and radius on whose outcome up to 13 verifiers agreed (VNN-COMP 2021)."""

    model: audit.Model
    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    violated: NDArray[np.bool_]
    threat: ThreatModel

    @classmethod
    def all(cls) -> Iterator[tuple[str, Boxes]]:
        """Yield all 51, by network and radius."""
        known = np.load(SHARED / "models" / "mnistfc_known_outcomes.npz")
        for name in np.unique(known["network"]):
            model, _ = setting(str(name).removesuffix(".onnx"))
            for eps in np.unique(known["eps"]):
                mine = (known["network"] == name) & (known["eps"] == eps)
                low, high = (torch.tensor(known[side][mine]).view(-1, 1, 28, 28) for side in ("low", "high"))
                # A side that the ends of the box cut off is that far from the image no longer: the other one tells.
                x = (torch.where(low <= 0, high - eps, low + eps) * 255).round() / 255
                threat = ThreatModel("linf", float(eps), np.zeros(1), np.ones(1))
                labels = torch.tensor(known["label"][mine])
                yield str(name), cls(model, x, labels, low, high, known["outcome"][mine] == "violated", threat)

    def held(self, x_adv: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which examples break their samples inside the boxes as they are written down."""
        points = torch.tensor(x_adv).view_as(self.x[rows]).clamp(self.low[rows], self.high[rows])
        return np.asarray((output_of(self.model, points).argmax(dim=1) != self.y[rows]).cpu())

    def attacked(self, evaluation: str) -> tuple[NDArray[np.bool_], float, float]:
        """Return which boxes an evaluation breaks, forwards and backwards a box."""
        profile = "exhaustive" if evaluation == "adaptive" else "standard"
        out = audit.robust_accuracy(self.model, self.x, self.y, threat=self.threat, evaluation=evaluation, profile=profile)  # type: ignore[arg-type]
        everything = np.arange(len(self.x))
        return out.broken & self.held(out.x_adv, everything), out.forwards / len(self.x), out.backwards / len(self.x)

    def settled(self, i: int, seconds: float) -> tuple[str, float, str]:
        """Run the exhaustive rounds on one box, none before: outcome, wall-clock seconds, and the last round that ended."""
        at, began, last, done = np.array([i]), time.monotonic(), "", list[Found]()
        try:
            with until(began + seconds):
                for one in exhaustive():
                    known = Known.of(np.array([True]), done)
                    job = Job(self.model, self.x[at], self.y[at], torch.from_numpy(at), np.array([0]), self.threat)
                    found, last = one(job, known), one.name
                    done.append(Found(np.array([0]), found))
                    if found["certified"][0]:
                        return "certified", time.monotonic() - began, last
                    if found["broken"][0]:
                        return "broken" if self.held(found["x_adv"], at)[0] else "open", time.monotonic() - began, last
        except BudgetSpent:
            pass
        return "open", time.monotonic() - began, last


def known_outcomes(seconds: float) -> None:
    """Print what AutoAttack, the adaptive rounds and the exhaustive ones make of the boxes whose outcome is known."""
    print(
        f"{'network':20}{'radius':>7}{'outcome':>10}{'boxes':>7}{'autoattack':>12}{'adaptive':>10}{'broken in 5 s':>15}"
        f"{f'{seconds:g} s':>7}{'certified in 5 s':>18}{f'{seconds:g} s':>7}{'slowest':>9}"
    )
    for name, boxes in Boxes.all():
        boxes.model.resolve(boxes.x)
        (standard, *cost), (adapted, *own) = boxes.attacked("autoattack"), boxes.attacked("adaptive")
        ends = [boxes.settled(i, seconds) for i in range(len(boxes.x))]
        took = np.array([time_ for _, time_, _ in ends])
        for violated in (True, False):
            mine = boxes.violated == violated
            if not mine.any():
                continue
            broken, certified = (np.array([end == what for end, _, _ in ends]) & mine for what in ("broken", "certified"))
            if (certified if violated else broken | ((standard | adapted) & mine)).any():
                raise RuntimeError("a violated box was certified, or one that holds was broken")
            print(
                f"{name:20}{boxes.threat.eps:7.2f}{'violated' if violated else 'holds':>10}{mine.sum():7d}"
                f"{(standard & mine).sum():12d}{(adapted & mine).sum():10d}{(broken & (took <= 5)).sum():15d}{broken.sum():7d}"
                f"{(certified & (took <= 5)).sum():18d}{certified.sum():7d}{took[mine].max():9.1f}"
            )
        open_ = [(boxes.violated[i], last) for i, (end, _, last) in enumerate(ends) if end == "open"]
        rest = ", ".join(f"one that {'is violated' if bad else 'holds'} (after {last or 'no round'})" for bad, last in open_)
        print(
            f"  passes a box: AutoAttack {cost[0]:.0f} forwards and {cost[1]:.0f} backwards, adaptive {own[0]:.0f} "
            f"and {own[1]:.0f}\n  open: {rest or 'none'}",
            flush=True,
        )


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path())
    parser.add_argument("--boxes", action="store_true", help="the boxes of VNN-COMP 2021 whose outcome is known")
    parser.add_argument("--only", default="mnist_cnn_a_adv,mnist_2_20")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--adaptive", action="store_true", help="run the adaptive rounds first, as the profile does")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.boxes:
        known_outcomes(options.seconds)
        return
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
