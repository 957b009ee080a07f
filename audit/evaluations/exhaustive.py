"""What the exhaustive profile adds: work on the samples that the bracket leaves open, until each is broken or certified.

Two kinds of rounds take turns, each turn with more effort. *Branching* cuts the inputs of a sample into parts until each has
a bound; where the bounds are lowest the network is run, so that branching breaks samples, too. *Walking* starts many climbs on
one sample, walks from the best of them through the linear regions of the network, each time to the best vertex of a region (a
linear program), and lets the units that are nearest to their corners switch (a mixed-integer program). To search activation
patterns rather than inputs is the idea of Zhang et al. 2022, "A Branch and Bound Framework for Stronger Adversarial Attacks of
ReLU Networks".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.geometry import Ball, Region
from audit.attacks.goal import Goal
from audit.budget import check_deadline, seconds_left
from audit.certificates.bounds import Bounds
from audit.certificates.branching import Branched, branch
from audit.certificates.certify import FORWARDS, bounds_of, margin_rows, margins
from audit.certificates.network import Network, NoBound
from audit.certificates.optimise import tighten
from audit.evaluations.adaptive import FIRST_STEP, HOP_STEP, HOP_STEPS, Climb, block, corner
from audit.evaluations.base import ARRAYS, Job, Known, Round
from audit.evaluations.pieces import Pieces, Reach, climb
from audit.model.wrapper import Model

# Parts that branching may bound for each class of a sample; climbs, regions and units that may switch of a walk.
BRANCHES = (64, 256, 1024, 4096, 16384)
WALKS = ((64, 6, 0), (128, 8, 60), (256, 10, 120), (512, 12, 240))
SHARE, FEWEST = 0.25, 16  # walks go on with the samples of largest margin: this share of those that stand, and at least so many
STEPS = 60  # of a climb
COPIES = 32  # climbs at once
CLIMBS = 4  # of the parts bounded at once: from where their bounds are lowest
ENDS = 2  # best climbs that a walk sets out from: its linear programs take a second each on a network of 5,000 units
ALPHA_STEPS = 20
WORTH = 1e-3  # of the margin: what a region must gain for the walk to go on
SOLVER_SECONDS = 60.0


def exhaustive(*, seed: int = 0) -> list[Round]:
    """Return the rounds that follow the adaptive ones; all but the walks' climbs need a network that has bounds."""
    read = Reader()
    rounds: list[Round] = []
    for i, parts in enumerate(BRANCHES):
        rounds.append(Branching(i, parts, read))
        if i:  # two turns of branching settle so many that walks are spared
            rounds.append(Walking(i - 1, *WALKS[i - 1], read, seed=seed))
    return rounds


@dataclass
class Reader:
    """Reads a network once for all rounds: its operations, and its linear pieces; None where it has none."""

    model: Model | None = None
    network: Network | None = None
    pieces: Pieces | None = None
    why: str = field(default="")

    def of(self, model: Model, x: Tensor) -> tuple[Network | None, Pieces | None]:
        """Return what `model` is made of; `x` are some of its inputs."""
        if self.model is not model:
            self.model, self.network, self.pieces, self.why = model, None, None, ""
            try:
                self.network = Network.of(model, x[:4], dtype=torch.float64)
                self.pieces = Pieces.of(self.network)
            except NoBound as problem:
                self.why = str(problem)
        return self.network, self.pieces


class _OneByOne(Round):
    """A round that works on one sample at a time."""

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:
        """Run on some samples; see `Round`. `certified` tells which nothing can break."""
        best = known.points(job.positions, job.x)
        found = [self._sample(job, i, best[i : i + 1], float(known.margin[p])) for i, p in enumerate(job.positions)]
        return _arrays(job, found)

    @abstractmethod
    def _sample(self, job: Job, i: int, best: Tensor, margin: float) -> Search:
        """Work on sample `i` of the job, of which the best point and its margin are known."""


@dataclass
class Search:
    """One sample, and the best point so far; runs the network on candidates.

    Attributes
    ----------
    point, margin
        The point of the highest margin that the network itself gave; for regression how far beyond the tolerance it is.
    """

    model: Model
    x: Tensor
    goal: Goal
    ball: Ball
    point: Tensor
    margin: float
    broken: bool = False
    certified: bool = False

    @classmethod
    def of(cls, job: Job, i: int, best: Tensor, margin: float) -> Search:
        """Begin with sample `i` of a job, and what is known of it."""
        x, y = job.x[i : i + 1], job.y[i : i + 1]
        y = output_of(job.model, x) if job.model.task == "regression" else y.long()
        goal = Goal(job.model.task or "", y, job.tolerance or 0.0)
        return cls(job.model, x, goal, job.threat.on(x), best, margin)

    @property
    def region(self) -> Region:
        """What may stand in for the sample."""
        return self.ball.around(self.x)

    def many(self, count: int) -> tuple[Region, Goal]:
        """Return region and goal of so many copies."""
        rows = torch.zeros(count, dtype=torch.long, device=self.x.device)
        return self.ball.around(self.x[rows]), self.goal.take(rows)

    def look(self, points: Tensor) -> bool:
        """Run the network at points (n, …), keep the best; True where one breaks the sample."""
        return self.best_of(points, 0) is None

    def nearest(self) -> int:
        """Return the class, label or side that the best point so far is nearest to being broken by."""
        output = output_of(self.model, self.point)
        if self.goal.task == "regression":
            return int(output > self.goal.y) ^ 1
        return int(self.goal.nearest(output, 1))

    def best_of(self, points: Tensor, count: int) -> Tensor | None:
        """Run the network at points (n, …), keep the best, and return the `count` best; None where one breaks the sample."""
        if not len(points) or self.broken:
            return None if self.broken else points
        region, goal = self.many(len(points))
        points = region.project(points.to(self.x))
        output = output_of(self.model, points)
        margins_ = self._margin(goal, output)
        if self.keep(points, margins_, goal.broken(output)):
            return None
        return points[margins_.argsort(descending=True, stable=True)[:count]]

    def climb(self, starts: Tensor, target: int, id_: int, purpose: str) -> bool:
        """Climb towards a class (regression: a side of the tolerance) from points (n, …); True where the sample is broken."""
        region, goal = self.many(len(starts))
        down = goal.task == "regression" and target == 1
        if goal.task != "regression":
            goal = goal.towards(torch.full((len(starts),), target, device=starts.device))
        run = Climb(self.model, region.x, region, goal, _copies(id_, len(starts)).to(starts.device), purpose, 0)
        run.run(starts, HOP_STEPS, HOP_STEP, kind="margin", direction=-1.0 if down else 1.0)
        return self.keep(run.point, run.margin, run.broken)

    def keep(self, points: Tensor, margins_: Tensor, hit: Tensor) -> bool:
        """Keep the best of points whose margins are known."""
        values = torch.where(hit, torch.inf, margins_.nan_to_num(nan=-torch.inf))
        top = int(values.argmax())
        if bool(hit[top]):
            point = points[top : top + 1]
            held = self.goal.broken(output_of(self.model, point)) & self.ball.allows(self.x, point)
            if bool(held[0]):
                self.point, self.margin, self.broken = point, float(margins_[top]), True
        elif float(values[top]) > self.margin:
            self.point, self.margin = points[top : top + 1], float(values[top])
        return self.broken

    @staticmethod
    def _margin(goal: Goal, output: Tensor) -> Tensor:
        return (output - goal.y).abs() - goal.tolerance if goal.task == "regression" else goal.loss(output, kind="margin")


class Branching(_OneByOne):
    """Branch and bound on all samples that stand; see `audit.certificates.branching`."""

    def __init__(self, number: int, parts: int, read: Reader) -> None:
        self.name, self.parts, self.read = f"branch.{number + 1}", parts, read
        # Of one class: it is left at the first that stays open.
        self.passes = FORWARDS * Branched(0.0, stopped=False, parts=parts).passes

    def _sample(self, job: Job, i: int, best: Tensor, margin: float) -> Search:
        search = Search.of(job, i, best, margin)
        network, _ = self.read.of(job.model, job.x)
        if network is None:
            return search
        root = bounds_of(network, search.x, job.threat)
        with torch.no_grad():
            lower = margins(root, search.goal.y, job.tolerance, alpha_steps=ALPHA_STEPS)[0]
            if not bool((lower > 0).all()):
                tighten(root)
                lower = torch.maximum(lower, margins(root, search.goal.y, job.tolerance, alpha_steps=ALPHA_STEPS)[0])
        open_ = [j for j in torch.argsort(lower).tolist() if not float(lower[j]) > 0]
        likely, id_ = search.nearest(), int(job.ids[i])
        # The loosest first: where it stays open the others make no certificate, and one alone may still make an example.
        while open_ and self._closed(search, root, open_[0], job.tolerance, id_):
            open_.pop(0)
        search.certified = not open_
        if likely in open_[1:] and not search.broken:
            self._closed(search, root, likely, job.tolerance, id_)
        job.model.forwards += round(FORWARDS * root.rows / lower.numel())
        return search

    def _closed(self, search: Search, root: Bounds, target: int, tolerance: float | None, id_: int) -> bool:
        """Branch on one class; True where no input is of it."""
        rows, constant, _ = margin_rows(root.network, search.goal.y, tolerance, root)
        row, added = rows[0, target], float(constant[0, target])
        found = branch(root, row, added, most=self.parts, probe=self._steered(search, target, id_))
        root.rows += round(found.passes * rows.shape[1])
        return found.certified

    def _steered(self, search: Search, target: int, id_: int) -> Callable[[Tensor], bool]:
        """Return what tries the inputs in which the bounds of parts are lowest: it runs the network there, and climbs on."""

        def probe(lowest: Tensor) -> bool:
            best = search.best_of(lowest, CLIMBS)
            return best is None or (len(best) > 0 and search.climb(best, target, id_, self.name))

        return probe


class Walking(_OneByOne):
    """Climbs from many places on the samples that are nearest to being broken, and walks through linear regions."""

    def __init__(self, number: int, climbs: int, regions: int, free: int, read: Reader, *, seed: int = 0) -> None:
        self.name, self.read, self.seed = f"walk.{number + 1}", read, seed
        self.climbs, self.regions, self.free = climbs, regions, free
        self.passes = climbs * (2.0 * STEPS + 1)

    def choose(self, known: Known) -> NDArray[np.int64]:
        """Return the standing samples of the largest margins."""
        standing = np.flatnonzero(known.standing)
        most = max(FEWEST, int(np.ceil(SHARE * len(standing))))
        order = np.lexsort((standing, -known.margin[standing]))
        return np.sort(standing[order[:most]])

    def _sample(self, job: Job, i: int, best: Tensor, margin: float) -> Search:
        search = Search.of(job, i, best, margin)
        ends = self._climb(search, int(job.ids[i]))
        # Linear programs know the box, which in L∞ holds the radius.
        if search.broken or search.goal.task != "classification" or job.threat.norm != "linf":
            return search
        network, pieces = self.read.of(job.model, job.x)
        if network is None or pieces is None:
            return search
        reach = _reach(network, pieces, bounds_of(network, search.x, job.threat))
        for end in (search.point, *ends):
            if self._walk(search, pieces, reach, end):
                return search
        if self.free:
            self._walk(search, pieces, reach, search.point, free=self.free)
        return search

    def _climb(self, search: Search, id_: int) -> list[Tensor]:
        """Climb from many places; return where the best of the climbs ended."""
        points, values = [], []
        for turn in range(max(1, self.climbs // COPIES)):
            region, goal = search.many(COPIES)
            ids = _copies(id_, COPIES).to(search.x.device)
            run = Climb(search.model, region.x, region, goal, ids, f"{self.name}.{turn}", self.seed)
            start = corner(region, ids, seed=self.seed, purpose=f"{self.name}.{turn}")
            if turn % 2:
                mask = block(ids, start, seed=self.seed, purpose=f"{self.name}.{turn}.block", draw=0)
                start = region.project(torch.where(mask, start, search.point))
            down = goal.task == "regression" and turn % 2
            run.run(start, STEPS, FIRST_STEP, kind="ce" if turn % 4 == 3 else "margin", direction=-1.0 if down else 1.0)
            if search.keep(run.point, run.margin, run.broken):
                return []
            points.append(run.point)
            values.append(run.margin)
        order = torch.cat(values).argsort(descending=True)[:ENDS]
        return list(torch.cat(points)[order][:, None])

    def _walk(self, search: Search, pieces: Pieces, reach: Reach, start: Tensor, *, free: int = 0) -> bool:
        """Go from region to region while the margin grows enough; True where the sample is broken."""
        label = int(search.goal.y)
        point = start[0].double().flatten().cpu().numpy()
        logits = _logits(pieces, pieces.run(point)[2])
        others = np.delete(np.arange(len(logits)), label)
        target = int(others[logits[others].argmax()])
        margin = logits[target] - logits[label]
        for _ in range(self.regions):
            check_deadline()
            found = climb(pieces, reach, point, target, label, free=free, seconds=min(SOLVER_SECONDS, seconds_left()))
            check_deadline()  # what a deadline cut short is not kept: without it the program may end elsewhere
            if found is None:
                return False
            if search.look(torch.as_tensor(found).view_as(search.x)):
                return True
            logits = _logits(pieces, pieces.run(found)[2])
            gained, margin = logits[target] - logits[label] - margin, logits[target] - logits[label]
            if gained < WORTH * abs(margin):
                return False
            point = found
        return False


def _reach(network: Network, pieces: Pieces, bounds: Bounds) -> Reach:
    """Return the box and the bounds of what goes into each kink, of one sample."""

    def flat(values: Tensor) -> NDArray[np.float64]:
        return values[0].double().flatten().cpu().numpy()

    numbers = [network.nodes[kink.node].inputs[0] for kink in pieces.kinks]
    inside = tuple((flat(bounds.low[number]), flat(bounds.high[number])) for number in numbers)
    return Reach(flat(bounds.inputs.low), flat(bounds.inputs.high), inside)


def _logits(pieces: Pieces, output: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray([0.0, output[0]]) if pieces.single else output


def _copies(id_: int, count: int) -> Tensor:
    """Return ids of copies of a sample, told apart from each other, and from all samples, by their upper bits."""
    return torch.arange(1, count + 1) * 2**40 + id_


def _arrays(job: Job, found: Sequence[Search]) -> dict[str, NDArray[Any]]:
    """Return what `Round` asks for, and which samples were certified."""
    n = len(found)
    x_adv = torch.cat([one.point for one in found]) if n else job.x
    broken = torch.tensor([one.broken for one in found], dtype=torch.bool, device=job.x.device)
    distance = torch.where(broken, job.threat.on(job.x).distance(job.x, x_adv), torch.inf)
    margin = torch.tensor([one.margin for one in found], dtype=job.x.dtype)
    nothing, no = torch.full((n,), torch.nan, dtype=job.x.dtype), torch.zeros(n, dtype=torch.bool)
    values = (x_adv, broken, distance, nothing, margin, no, no, no)
    arrays = {name: value.cpu().numpy() for name, value in zip(ARRAYS, values, strict=True)}
    certified = np.asarray([one.certified and not one.broken for one in found], dtype=np.bool_)
    return {**arrays, "certified": certified}
