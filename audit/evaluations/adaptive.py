"""The adaptive evaluation: a survey of all samples, then more and more budget on fewer and fewer that are nearly broken.

What settled it, on an adversarially trained and a provably trained network of two convolutions (300 images each):

- Starts at random corners of the ball rather than inside it left 219 samples standing after 123 passes where 222 stood.
- On the samples that only the last rounds broke (45 starts on 7 images of one network, 12 on 3 of the other), 40 hops from the
  best point so far with one block thrown to a random corner broke 62 % and 33 % when their first step was 0.3 radii, 73 % and
  81 % when it was 0.7 and steps shrank evenly, and 78 % and 100 % with ten small blocks thrown after each hop, which cost
  forwards alone. Such blocks alone broke 51 % and 100 %. Worse: a target that changes from hop to hop (38 % and 8 %), longer
  hops at equal passes, first steps beyond a radius; no better: momentum, fresh corners more often.
- Wide runs in L2, radius 1.5: see `Wide`. Of 204 samples that stood after all of the rounds inside the ball, 120 steps inside
  it broke 4 from random signs and 14 from single blocks; 33 with a ball that shrinks and scales all changes; 77 with one that
  thresholds them. In L∞ a shrinking ball broke no more than corners did.
- On a table of 13 whole numbers, radius one standard deviation, ``standard`` left 66 of 600 samples standing, 13 of which
  Square Attack broke; with 20 blocks of columns thrown after each survey 55, of which Square broke 2 (with 60 blocks 53 and
  none), at fewer passes in all.
- Single inputs thrown at random and directions that had broken other samples of the same class did not pay, nor did starts
  that a random direction of the outputs leads to (Tashiro et al. 2020: as good as blocks alone, no better beside them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.geometry import Norm, Region, l2_norm, per_sample, size_of
from audit.attacks.goal import Goal, LossName
from audit.attacks.steps import largest_entry, observe, step, unit_l2
from audit.data.noise import hashed_bits
from audit.evaluations.base import Job, Known, Profile, Round, Searched, search
from audit.model.wrapper import Model

LOOK_EVERY = 5  # steps between looks at who has left: each look is a sync on a GPU, each leaving a copy
FIRST_STEP, HOP_STEP = 0.7, 0.7  # first step of a survey and of a hop, in units of the radius
HOP_STEPS = 10
WIDE, CLOSED_IN, WIDE_STEP = 6.0, 0.5, 1.0  # radii that a wide run begins at, share of its steps by which it is at one, step
HALVINGS = 20
BLOCK_SIDE = 0.3  # of a picture's side, or of a table's columns: 0.2 to 0.4 did about equally well, 0.5 worse
SMALL_SIDES = (0.04, 0.07, 0.11, 0.18, 0.29)  # likewise, of the blocks that polish; of a table the share of its columns
POLISH = 10  # blocks a hop
THROWS = 20  # blocks of columns after a survey of a table with whole numbers or categories
FRESH = 8  # every so many hops one begins at a random corner altogether
WORTH = 50.0  # gains of the last round that a sample may be away from being broken, to be worth another
FEWEST = 3


@dataclass(frozen=True)
class Plan:
    """Budget of a profile.

    Attributes
    ----------
    steps, surveys
        Gradient steps of a survey, and surveys.
    wide
        Wide runs, but in L∞.
    focus
        For each focus the share of the samples that stand, and the hops on each of them.
    """

    steps: int
    surveys: int
    wide: int
    focus: tuple[tuple[float, int], ...]


PLANS: dict[Profile, Plan] = {
    "quick": Plan(15, 1, 1, ((0.1, 8),)),
    "standard": Plan(20, 2, 2, ((0.2, 8), (0.1, 20), (0.05, 56))),
    "thorough": Plan(20, 4, 6, ((0.25, 12), (0.12, 32), (0.06, 96), (0.03, 400))),
    "exhaustive": Plan(20, 5, 8, ((0.25, 12), (0.12, 48), (0.06, 160), (0.03, 700))),
}


def adaptive(
    profile: Profile = "standard",
    *,
    norm: Norm = "linf",
    steps: int | None = None,
    surveys: int | None = None,
    step_size: float | None = None,
    discrete: bool = False,
    seed: int = 0,
) -> list[Round]:
    """Return the rounds of the adaptive evaluation.

    Parameters
    ----------
    profile
        Sets the budget; see `PLANS`.
    norm
        Of the threat model: in all but L∞ there are `Wide` rounds, too.
    steps, surveys
        Gradient steps of a survey and number of surveys, in place of the profile's.
    step_size
        Length of every step of a survey in units of the radius; shrinking along half a cosine from 0.7 where None.
    discrete
        Whether columns hold whole numbers or categories: then surveys throw blocks, too (L∞), for no gradient tells what a
        whole step does.
    """
    plan = PLANS[profile]
    steps, surveys = steps or plan.steps, surveys or plan.surveys
    throws = THROWS if discrete and norm == "linf" else 0
    rounds: list[Round] = [Survey(i, steps, step_size=step_size, throws=throws, seed=seed) for i in range(surveys)]
    if norm != "linf":
        rounds += [Wide(i, plan.steps, seed=seed) for i in range(plan.wide)]
    return [*rounds, *(Focus(i, share, hops, seed=seed) for i, (share, hops) in enumerate(plan.focus))]


class Survey(Round):
    """A run up the loss from a random corner of the ball, on all samples that stand.

    The surveys take turns: cross-entropy, then the margin towards the class that came closest so far, cross-entropy again,
    the margin towards the second closest, and so on. A multi-label network has labels to flip for classes. Regression goes
    up and down in turn. With `throws`, so many small blocks of columns are thrown after it, as in a focus.
    """

    def __init__(self, number: int, steps: int, *, step_size: float | None = None, throws: int = 0, seed: int = 0) -> None:
        self.name = f"survey.{number + 1}"
        self.number, self.steps, self.step_size, self.throws, self.seed = number, steps, step_size, throws, seed
        self.passes = 2.0 * steps + throws + 3

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:
        """Run on some samples; see `Round`."""
        model, targeted = job.model, self.number % 2 == 1
        best = known.points(job.positions, job.x)

        def run(x: Tensor, begin: Tensor, goal: Goal, ids: Tensor) -> Searched:
            region = job.threat.on(x).around(x)
            if targeted and goal.task != "regression":
                # There are fewer others than that where there are few classes: then the last of them again.
                goal = goal.towards(goal.nearest(output_of(model, begin), self.number // 2 + 1)[:, -1])
            climb = Climb(model, x, region, goal, ids, self.name, self.seed)
            start = corner(region, ids, seed=self.seed, purpose=self.name)
            climb.run(
                start,
                self.steps,
                FIRST_STEP,
                kind="margin" if targeted else "ce",
                direction=-1.0 if targeted else 1.0,
                step_size=self.step_size,
            )
            if self.throws and len(climb.rows):
                climb.polish(0, self.throws)
            return climb.found()

        return search(job, best, run)


class Wide(Round):
    """A run from far outside the ball, which closes in on it, on all samples that stand; not for L∞.

    It begins with every input moved by half of the box, up or down at random, where no unit of the network is at rest and the
    gradient knows which inputs matter. The ball is six times as wide at first and shrinks to its own size over half of the
    steps. In L2 points come back into it by soft thresholds: small changes go to zero, rather than all changes shrink alike.
    Where a network ignores small changes of an input, only few and large ones break it, and no path inside the ball leads
    there.
    """

    def __init__(self, number: int, steps: int, *, seed: int = 0) -> None:
        self.name = f"wide.{number + 1}"
        self.number, self.steps, self.seed = number, steps, seed
        self.passes = 2.0 * steps + 1

    def __call__(self, job: Job, known: Known) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Run on some samples; see `Round`."""

        def run(x: Tensor, begin: Tensor, goal: Goal, ids: Tensor) -> Searched:  # noqa: ARG001
            region = job.threat.on(x).around(x)
            climb = Climb(job.model, x, region, goal, ids, self.name, self.seed)
            start = far_away(wider(region, WIDE), ids, seed=self.seed, purpose=self.name)
            direction = -1.0 if goal.task == "regression" and self.number % 2 else 1.0
            climb.run(start, self.steps, WIDE_STEP, kind="margin", direction=direction, radius=WIDE)
            return climb.found()

        return search(job, job.x, run)


class Focus(Round):
    """Many short runs on the samples that are nearly broken, each from the best point so far with one block thrown elsewhere.

    In L∞ small blocks are thrown after each, as Square Attack does (Andriushchenko et al. 2020), for forwards alone.

    A sample is worth it while its margin is within 50 times what the last round gained: with 10 times, three of the samples
    that the whole budget breaks on the MNIST network were given up for 15 % fewer passes, and more with 2 or 5 times. Of
    those, the share with the largest margins is taken. Each focus spends on its samples more than all rounds before it.
    """

    def __init__(self, number: int, share: float, hops: int, *, seed: int = 0) -> None:
        self.name = f"focus.{number + 1}"
        self.number, self.share, self.hops, self.seed = number, share, hops, seed
        self.passes = hops * (2.0 * HOP_STEPS + 1 + POLISH) + 2

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
                climb.run(climb.elsewhere(hop, whole=fresh), HOP_STEPS, HOP_STEP, kind=kind, direction=direction, curved=False)
                if job.threat.norm == "linf" and len(climb.rows):
                    climb.polish(hop, POLISH)
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
        self._note(self.rows, self.goal.take(self.rows), point[self.rows], output_of(self.model, point[self.rows]))
        self._leave()

    def run(
        self,
        start: Tensor,
        steps: int,
        first_step: float,
        *,
        kind: LossName,
        direction: float = 1.0,
        step_size: float | None = None,
        curved: bool = True,
        radius: float = 1.0,
    ) -> None:
        """Go `steps` steps up the loss from `start`, of the whole batch.

        Steps shrink from `first_step`, in units of the radius, to 0: along half a cosine, or evenly where not `curved`. Where
        `radius` is above 1, `start` may lie that many times as far away as the ball reaches, or farther, and the run closes in.
        """
        rows, point = self.rows, start[self.rows]
        region, goal = self.region.take(rows), self.goal.take(rows)
        inside = radius == 1
        for k in range(steps):
            times = radius ** max(0.0, 1 - k / (CLOSED_IN * steps))
            wide = wider(region, times)
            gradient, output = self._gradient(goal, point, kind, direction)
            if inside:
                self._note(rows, goal, point, output)
            if k % LOOK_EVERY == 0:
                stuck = self._watch(rows, gradient)
                keep = ~self.broken[rows]
                if not bool(keep.all()):
                    rows, point, gradient, stuck = rows[keep], point[keep], gradient[keep], stuck[keep]
                    region, wide, goal = region.take(keep), wide.take(keep), goal.take(keep)
                if len(rows) == 0:
                    break
                if bool(stuck.any()):
                    # Without a gradient a step goes nowhere: the sample is started again elsewhere in the ball.
                    again = self._wake(region.take(stuck), self.ids[rows[stuck]], k)
                    point = point.index_put((stuck,), again)
            share = (1 + math.cos(math.pi * k / steps)) / 2 if curved else 1 - k / steps
            length = step_size or first_step * wide.ball.eps * share
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            if radius > 1 and wide.ball.norm == "l2":
                point = wide.follow(thresholded(point, gradient, wide, length))
            else:
                point = step(point, gradient, wide, length * region.ball.unit())
            inside = times == 1
        else:
            self._note(rows, goal, point, output_of(self.model, point))
        self._leave()

    def elsewhere(self, hop: int, *, whole: bool) -> Tensor:
        """Return the best points with one block of each, or the `whole`, thrown to a random corner of the ball, (n, …)."""
        purpose = f"{self.purpose}.hop"
        thrown = corner(self.region, self.ids, seed=self.seed, purpose=purpose, draw=hop)
        if whole:
            return thrown
        mask = block(self.ids, self.point, seed=self.seed, purpose=f"{purpose}.block", draw=hop)
        return self.region.project(torch.where(mask, thrown, self.point))

    def polish(self, hop: int, count: int) -> None:
        """Throw `count` small blocks of the best points to a corner of the ball, in turn, each kept where the margin grows."""
        rows, purpose = self.rows, f"{self.purpose}.polish"
        region, goal, ids = self.region.take(rows), self.goal.take(rows), self.ids[self.rows].to(self.point.device)
        for i in range(count):
            draw = hop * count + i
            mask = block(ids, region.x, seed=self.seed, purpose=purpose, draw=draw, side=SMALL_SIDES[draw % len(SMALL_SIDES)])
            up, point = ends(ids, region.x, seed=self.seed, purpose=f"{purpose}.end", draw=draw), self.point[rows]
            thrown = torch.where(mask, torch.where(up, region.high, region.low), point)
            # What is at that end already goes to the other one.
            idle = per_sample((thrown == point).flatten(1).all(dim=1), point)
            thrown = region.project(torch.where(mask & idle, torch.where(up, region.low, region.high), thrown))
            self._note(rows, goal, thrown, output_of(self.model, thrown))
        self._leave()

    def _gradient(self, goal: Goal, point: Tensor, kind: LossName, direction: float) -> tuple[Tensor, Tensor]:
        gradient, _, output = observe(self.model, point, lambda output: goal.loss(output, direction, kind))
        return gradient, output

    def _note(self, rows: Tensor, goal: Goal, point: Tensor, output: Tensor) -> None:
        hit = goal.broken(output)
        margin = (output - goal.y).abs() - goal.tolerance if goal.task == "regression" else goal.margin(output)
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


def far_away(region: Region, ids: Tensor, *, seed: int, purpose: str) -> Tensor:
    """Return the samples with each input moved by half of the box up or down, at random, and clipped to the box."""
    x, ball = region.x, region.ball
    count = x[0].numel() if len(x) else 1
    heads = (hashed_bits(ids.to(x.device), count, seed=seed, purpose=purpose) >> 31).bool().view(x.shape)
    half = (ball.high - ball.low) / 2
    half = half if ball.scale is None else torch.where(ball.scale > 0, half, 0.0)
    return torch.minimum(torch.maximum(torch.where(heads, x + half, x - half), region.low), region.high)


def wider(region: Region, times: float) -> Region:
    """Return the region of a ball so many times as wide."""
    if times == 1:
        return region
    return replace(region.ball, eps=region.ball.eps * times).around(region.x)


def thresholded(point: Tensor, gradient: Tensor, region: Region, length: float) -> Tensor:
    """Go a step up the gradient, and come back to the L2 radius by moving all changes towards zero by as much, or to it.

    The threshold is where the norm of what exceeds it is the radius; it is found by bisection, in units of the radius.
    """
    ball = region.ball
    moved = region.clip(point + unit_l2(gradient * ball.unit()) * length * ball.unit()) - region.x
    size = ball.scaled(moved).abs()
    low, high = torch.zeros_like(size.flatten(1)[:, 0]), largest_entry(size)
    low, high = torch.where(l2_norm(size) <= ball.eps, -1e-9, low), torch.where(l2_norm(size) <= ball.eps, 0.0, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = l2_norm((size - per_sample(middle, size)).clamp_min(0.0)) > ball.eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    kept = moved.sign() * (size - per_sample(high.clamp_min(0.0), size)).clamp_min(0.0) * ball.unit()
    return region.x + (kept if ball.rules is None else torch.where(ball.rules.free, moved, kept))


def ends(ids: Tensor, like: Tensor, *, seed: int, purpose: str, draw: int) -> Tensor:
    """Return which end a block goes to, to broadcast over `like`: one each channel of a picture, or each column of a table."""
    shape = [1] * (like.ndim - 1) if like.ndim == 3 else [like.shape[1], *[1] * (like.ndim - 2)]
    return (hashed_bits(ids, math.prod(shape), seed=seed, purpose=purpose, draw=draw) >> 31).bool().view(len(ids), *shape)


def block(ids: Tensor, like: Tensor, *, seed: int, purpose: str, draw: int, side: float = BLOCK_SIDE) -> Tensor:
    """Return a mask like `like`: a random square of a picture in all channels, or random columns of a table.

    `side` is the square's share of the picture's sides, or the share of the columns.
    """
    ids = ids.to(like.device)
    if like.ndim < 3:
        count = like[0].numel() if len(like) else 1
        bits = hashed_bits(ids, count, seed=seed, purpose=purpose, draw=draw)
        chosen = bits < int(side * 2**32)
        # At least one column, or nothing would be thrown.
        return (chosen | (bits == bits.amin(dim=1, keepdim=True))).view(like.shape)
    height, width = like.shape[-2:]
    place = hashed_bits(ids, 2, seed=seed, purpose=purpose, draw=draw)
    inside = [
        _between(torch.arange(length, device=like.device), place[:, i, None] % (length - size + 1), size)
        for i, (length, size) in enumerate((s, max(1, round(side * s))) for s in (height, width))
    ]
    square = inside[0][:, :, None] & inside[1][:, None, :]
    return square.view(len(ids), *[1] * (like.ndim - 3), height, width).expand(like.shape)


def _between(at: Tensor, low: Tensor, size: int) -> Tensor:
    return (at >= low) & (at < low + size)
