"""The adaptive evaluation: a survey of all samples, then more and more budget on fewer and fewer that are nearly broken.

On an adversarially trained MNIST network at L∞ 0.3 what settled it (300 images, passes as forwards a sample): starts at random
corners of the ball rather than inside it left 219 samples standing after 123 passes where 222 stood; 1,000 further passes on
each of the 30 samples of the largest margin broke 4 to 6 of them when they began at the best point so far with one block of a
third of the side thrown to random corners, and 3 or 4 from fresh corners; single inputs thrown at random (0 to 3) and
directions that had broken other samples of the same class (none more) did not pay, nor did starts that a random direction of
the outputs leads to (Tashiro et al. 2020: as good as blocks alone, no better beside them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.geometry import Region, per_sample, size_of
from audit.attacks.goal import Goal, LossName
from audit.attacks.steps import largest_entry, step
from audit.data.noise import hashed_bits
from audit.evaluations.base import Job, Known, Profile, Round, Searched, search
from audit.model.wrapper import Model

LOOK_EVERY = 5  # steps between looks at who has left: each look is a sync on a GPU, each leaving a copy
FIRST_STEP, HOP_STEP = 0.7, 0.3  # first step of a survey and of a hop, in units of the radius
HOP_STEPS = 10
BLOCK_SIDE = 0.3  # of the side of a picture: 0.2 to 0.4 did about equally well, 0.5 worse and 0.7 not at all
COLUMNS = 0.3  # of the columns of a table
FRESH = 8  # every so many hops one begins at a random corner altogether
WORTH = 25.0  # gains of the last round that a sample may be away from being broken, to be worth another
FEWEST = 4


@dataclass(frozen=True)
class Plan:
    """Budget of a profile.

    Attributes
    ----------
    steps, surveys
        Gradient steps of a survey, and surveys.
    focus
        For each focus the share of the samples that stand, and the hops on each of them.
    """

    steps: int
    surveys: int
    focus: tuple[tuple[float, int], ...]


PLANS: dict[Profile, Plan] = {
    "quick": Plan(15, 1, ((0.1, 8),)),
    "standard": Plan(20, 2, ((0.2, 8), (0.1, 20), (0.05, 56))),
    "thorough": Plan(20, 4, ((0.25, 12), (0.12, 32), (0.06, 96), (0.03, 400))),
    "exhaustive": Plan(20, 5, ((0.25, 12), (0.12, 48), (0.06, 160), (0.03, 700))),
}


def adaptive(
    profile: Profile = "standard",
    *,
    steps: int | None = None,
    surveys: int | None = None,
    step_size: float | None = None,
    seed: int = 0,
) -> list[Round]:
    """Return the rounds of the adaptive evaluation.

    Parameters
    ----------
    profile
        Sets the budget; see `PLANS`.
    steps, surveys
        Gradient steps of a survey and number of surveys, in place of the profile's.
    step_size
        Length of every step of a survey in units of the radius; shrinking along half a cosine from 0.7 where None.
    """
    plan = PLANS[profile]
    steps, surveys = steps or plan.steps, surveys or plan.surveys
    rounds: list[Round] = [Survey(i, steps, step_size=step_size, seed=seed) for i in range(surveys)]
    return [*rounds, *(Focus(i, share, hops, seed=seed) for i, (share, hops) in enumerate(plan.focus))]


class Survey(Round):
    """A run up the loss from a random corner of the ball, on all samples that stand.

    The surveys take turns: cross-entropy, then the margin towards the class that came closest so far, cross-entropy again,
    the margin towards the second closest, and so on. Regression goes up and down in turn.
    """

    def __init__(self, number: int, steps: int, *, step_size: float | None = None, seed: int = 0) -> None:
        self.name = f"survey.{number + 1}"
        self.number, self.steps, self.step_size, self.seed = number, steps, step_size, seed
        self.passes = 2.0 * steps + 3

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:
        """Run on some samples; see `Round`."""
        model, targeted = job.model, self.number % 2 == 1
        best = known.points(job.positions, job.x)

        def run(x: Tensor, begin: Tensor, goal: Goal, ids: Tensor) -> Searched:
            region = job.threat.on(x).around(x)
            target = None
            if targeted and goal.task == "classification":
                target = closest_class(output_of(model, begin), goal.y, self.number // 2)
            climb = Climb(model, x, region, goal, ids, self.name, self.seed)
            start = corner(region, ids, seed=self.seed, purpose=self.name)
            climb.run(
                start,
                self.steps,
                FIRST_STEP,
                kind="margin" if targeted else "ce",
                direction=-1.0 if targeted else 1.0,
                target=target,
                step_size=self.step_size,
            )
            return climb.found()

        return search(job, best, run)


class Focus(Round):
    """Many short runs on the samples that are nearly broken, each from the best point so far with one block thrown elsewhere.

    A sample is worth it while its margin is within 25 times what the last round gained: with less, three of the samples that
    the whole budget breaks on the MNIST network were given up for 15 % fewer passes (10 times), and more with 2 or 5 times.
    Of those, the share with the largest margins is taken. Each focus spends on its samples more than all rounds before it.
    """

    def __init__(self, number: int, share: float, hops: int, *, seed: int = 0) -> None:
        self.name = f"focus.{number + 1}"
        self.number, self.share, self.hops, self.seed = number, share, hops, seed
        self.passes = hops * (2.0 * HOP_STEPS + 1) + 2

    def choose(self, known: Known) -> NDArray[np.int64]:
        """Return the standing samples with the largest margins that another round could break."""
        standing = np.flatnonzero(known.standing)
        most = max(FEWEST, math.ceil(self.share * len(standing)))
        margin = known.margin[standing]
        near = margin + WORTH * known.gain[standing] > 0 if self.number else np.ones(len(standing), dtype=bool)
        order = np.lexsort((standing, -margin))
        return np.sort(standing[order[near[order]][:most]])

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:
        """Run on some samples; see `Round`."""
        best = known.points(job.positions, job.x)

        def run(x: Tensor, begin: Tensor, goal: Goal, ids: Tensor) -> Searched:
            region = job.threat.on(x).around(x)
            climb = Climb(job.model, x, region, goal, ids, self.name, self.seed)
            climb.look_at(begin)
            for hop in range(self.hops):
                if not len(climb.rows):
                    break
                kind: LossName = "ce" if hop % 4 == 3 else "margin"
                direction = -1.0 if goal.task == "regression" and hop % 2 else 1.0
                fresh = hop % FRESH == FRESH - 1
                climb.run(climb.elsewhere(hop, whole=fresh), HOP_STEPS, HOP_STEP, kind=kind, direction=direction)
            return climb.found()

        return search(job, best, run)


class Climb:
    """Runs up the loss of one batch, and the best points that they have seen; samples that are broken leave.

    Attributes
    ----------
    rows : Tensor (m,)
        Positions in the batch of the samples that still stand; `point` and the like are of the whole batch.
    """

    def __init__(self, model: Model, x: Tensor, region: Region, goal: Goal, ids: Tensor, purpose: str, seed: int) -> None:
        self.model, self.region, self.goal = model, region, goal
        self.ids, self.purpose, self.seed = ids, purpose, seed
        self.point = x.clone()
        self.margin = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.first = torch.full_like(self.margin, torch.nan)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.zero, self.nan = torch.ones_like(self.broken), torch.zeros_like(self.broken)
        self.rows = torch.arange(len(x), device=x.device)

    def found(self) -> Searched:
        """Return what `search` asks for."""
        return self.point, self.broken, self.first, self.margin, self.zero, self.nan

    def look_at(self, point: Tensor) -> None:
        """Note the points, of the whole batch, as the best so far."""
        self._note(self.rows, point[self.rows], output_of(self.model, point[self.rows]), 1.0)
        self._leave()

    def run(
        self,
        start: Tensor,
        steps: int,
        first_step: float,
        *,
        kind: LossName,
        direction: float = 1.0,
        target: Tensor | None = None,
        step_size: float | None = None,
    ) -> None:
        """Go `steps` steps up the loss from `start`, of the whole batch."""
        rows, point = self.rows, start[self.rows]
        region, goal = self.region.take(rows), self.goal.take(rows)
        eps, unit = region.ball.eps, region.ball.unit()
        for k in range(steps):
            gradient, output = self._gradient(goal, point, kind, direction, None if target is None else target[rows])
            self._note(rows, point, output, direction)
            if k % LOOK_EVERY == 0:
                stuck = self._watch(rows, gradient)
                keep = ~self.broken[rows]
                if not bool(keep.all()):
                    rows, point, gradient, stuck = rows[keep], point[keep], gradient[keep], stuck[keep]
                    region, goal = region.take(keep), goal.take(keep)
                if len(rows) == 0:
                    break
                if bool(stuck.any()):
                    # Without a gradient a step goes nowhere: the sample is started again elsewhere in the ball.
                    again = self._wake(region.take(stuck), self.ids[rows[stuck]], k)
                    point = point.index_put((stuck,), again)
            length = step_size or first_step * eps * (1 + math.cos(math.pi * k / steps)) / 2
            point = step(point, gradient.nan_to_num(0.0, 0.0, 0.0), region, length * unit)
        else:
            self._note(rows, point, output_of(self.model, point), direction)
        self._leave()

    def elsewhere(self, hop: int, *, whole: bool) -> Tensor:
        """Return the best points with one block of each, or the `whole`, thrown to a random corner of the ball, (n, …)."""
        purpose = f"{self.purpose}.hop"
        thrown = corner(self.region, self.ids, seed=self.seed, purpose=purpose, draw=hop)
        if whole:
            return thrown
        mask = block(self.ids, self.point, seed=self.seed, purpose=f"{purpose}.block", draw=hop)
        return self.region.project(torch.where(mask, thrown, self.point))

    def _gradient(
        self, goal: Goal, point: Tensor, kind: LossName, direction: float, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        seen = point

        def loss(output: Tensor) -> Tensor:
            nonlocal seen
            seen = output.detach()
            if target is not None:
                return output.gather(1, target[:, None])[:, 0] - output.gather(1, goal.y[:, None])[:, 0]
            return goal.loss(output, direction, kind)

        gradient, _ = self.model.gradient(loss, point)
        return gradient, seen

    def _note(self, rows: Tensor, point: Tensor, output: Tensor, direction: float) -> None:
        goal = self.goal.take(rows)
        hit = goal.broken(output)
        margin = goal.loss(output, direction, "margin")
        if goal.task == "regression":
            margin = (output - goal.y).abs() - goal.tolerance
        self.first[rows] = torch.where(self.first[rows].isnan(), margin, self.first[rows])
        better = ((margin > self.margin[rows]) | hit) & ~self.broken[rows]
        self.margin[rows] = torch.where(better, margin, self.margin[rows])
        self.point[rows] = torch.where(per_sample(better, point), point, self.point[rows])
        self.broken[rows] |= hit

    def _watch(self, rows: Tensor, gradient: Tensor) -> Tensor:
        largest = largest_entry(gradient)
        self.nan[rows] |= ~torch.isfinite(largest)
        stuck = largest == 0
        self.zero[rows] &= stuck
        return stuck

    def _wake(self, region: Region, ids: Tensor, k: int) -> Tensor:
        purpose = f"{self.purpose}.again"
        if k // LOOK_EVERY % 2:
            return corner(region, ids, seed=self.seed, purpose=purpose, draw=k)
        return region.random(ids, seed=self.seed, purpose=purpose, draw=k)

    def _leave(self) -> None:
        self.rows = (~self.broken).nonzero()[:, 0]


def closest_class(logits: Tensor, y: Tensor, rank: int) -> Tensor:
    """Return the class of the `rank`-th highest logit but the label's, shape (n,); the last where there are fewer."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    rank = min(rank, logits.shape[1] - 2)
    chosen: Tensor = others.topk(rank + 1, dim=1).indices[:, rank]
    return chosen


def corner(region: Region, ids: Tensor, *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """Return a random corner of the L∞ ball around each sample; for other norms a point on the sphere with random signs."""
    x, ball = region.x, region.ball
    count = x[0].numel() if len(x) else 1
    heads = (hashed_bits(ids.to(x.device), count, seed=seed, purpose=purpose, draw=draw) >> 31).bool().view(x.shape)
    if ball.norm == "linf":
        return region.project(torch.where(heads, region.high, region.low))
    signs = torch.where(heads, 1.0, -1.0).to(x)
    length = ball.eps / size_of(torch.ones((1, count), dtype=x.dtype, device=x.device), ball.norm)
    return region.project(x + signs * length * ball.unit())


def block(ids: Tensor, like: Tensor, *, seed: int, purpose: str, draw: int) -> Tensor:
    """Return a mask like `like`: a random square of a picture in all channels, or random columns of a table."""
    ids = ids.to(like.device)
    if like.ndim < 3:
        bits = hashed_bits(ids, like[0].numel() if len(like) else 1, seed=seed, purpose=purpose, draw=draw)
        return (bits < int(COLUMNS * 2**32)).view(like.shape)
    height, width = like.shape[-2:]
    place = hashed_bits(ids, 2, seed=seed, purpose=purpose, draw=draw)
    inside = [
        _between(torch.arange(side, device=like.device), place[:, i, None] % (side - size + 1), size)
        for i, (side, size) in enumerate((s, max(1, round(BLOCK_SIDE * s))) for s in (height, width))
    ]
    square = inside[0][:, :, None] & inside[1][:, None, :]
    return square.view(len(ids), *[1] * (like.ndim - 3), height, width).expand(like.shape)


def _between(at: Tensor, low: Tensor, size: int) -> Tensor:
    return (at >= low) & (at < low + size)
