"""HopSkipJump (Chen, Jordan & Wainwright 2020): needs decisions alone, neither gradients nor scores; batched over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack, output_of
from audit.attacks.geometry import Ball, Norm, Region, l2_norm, per_sample, size_of
from audit.attacks.goal import Goal
from audit.attacks.steps import unit_l2
from audit.data.noise import block_seed, hashed_bits, uniform_noise
from audit.errors import UsageError
from audit.model.wrapper import Model

STARTS, TRIES = 8, 40  # starting points that every sample tries, and those that one without any goes on to
COARSE, FINE = 6, 12  # bisections of a starting point, and of each step
HALVINGS = 10  # of a step that does not stay on the wrong side
PIECE = 32  # directions drawn at a time: fixed, so that sums do not depend on the batch
TILES = 4  # coarse noise has so many tiles a side; directions half of which were smooth ended 1.4 times as far
REACH = 0.2  # length of the directions over the distance: 0.05 did worse on an MNIST network in both norms
MEMORY = 0.5  # weight of what the estimates before said
PURPOSE = "hop_skip_jump"


class HopSkipJump(MinimumNormAttack):
    r"""HopSkipJump: walks along the decision boundary towards the sample.

    Chen, Jordan & Wainwright 2020, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", algorithms 1 and 2: from a
    point that is classified wrongly, bisect to the boundary; estimate the boundary's normal there from the decisions at
    :math:`B_0\sqrt t` random points around it (equations 9 and 16, the mean decision is the baseline); step along it, by its
    sign in L∞, :math:`d_t/\sqrt t` far or half as far until the decision is still wrong; bisect again. All samples of a batch
    go through each stage together.

    Unlike the paper: a step that ends no nearer is not taken; the estimates before count on with a weight that halves; of
    several starting points the nearest is taken; there are fewer and longer directions.

    Directions are shared by the samples of one iteration and starting points belong to sample ids, so that results do not
    depend on the batch.

    Parameters
    ----------
    norm, eps, seed
        See `MinimumNormAttack`. With a finite `eps` a sample leaves as soon as it is broken within it, unless `to_the_end`.
    queries
        Most forwards a sample.
    directions
        Queries of the first estimate, the paper's :math:`B_0`.
    starts : Tensor (k, …), optional
        Inputs to start from where they are classified wrongly, of the reference data, say; each sample draws its own.
    to_the_end
        Whether a sample that is broken within `eps` is brought nearer still, until its queries are spent.
    """

    name = "hop_skip_jump"
    norms = ("linf", "l2")

    def __init__(
        self,
        norm: Norm = "l2",
        eps: float | None = None,
        *,
        queries: int = 1000,
        directions: int = 30,
        starts: Tensor | None = None,
        to_the_end: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if queries < 1 or directions < 2:
            raise UsageError(f"queries must be at least 1 and directions at least 2, got {queries} and {directions}")
        self.queries, self.directions, self.starts, self.to_the_end = queries, directions, starts, to_the_end

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`. Margins stay unknown: this attack does not look at them."""
        found = Candidates.start(x)
        found.grad_zero.fill_(False)
        found.loss_end.fill_(torch.nan)
        walk = _Walk.begin(model, x, goal, ball, ids)
        self._start(walk)
        walk.leave(found, ~walk.distance.isfinite())
        iteration = 0
        while len(walk.rows):
            iteration += 1
            count = round(self.directions * math.sqrt(iteration))
            done = walk.spent + count + FINE + HALVINGS > self.queries
            if not self.to_the_end and math.isfinite(self.eps):
                done |= walk.distance <= self.eps
            walk.leave(found, done)
            if len(walk.rows):
                self._iterate(walk, iteration, count)
        return found

    def _start(self, walk: _Walk) -> None:
        """Find each sample a point that is classified wrongly, and bring it near the boundary."""
        for draw in range(TRIES):
            asks = walk.spent + 1 + COARSE <= self.queries
            if draw >= STARTS:
                asks &= ~walk.distance.isfinite()
            at = asks.nonzero()[:, 0]
            if len(at) == 0:
                return
            at, point = walk.wrong(at, walk.region.take(at).project(self._starting_point(walk, at, draw)))
            walk.bisect(at, point, COARSE)

    def _starting_point(self, walk: _Walk, at: Tensor, draw: int) -> Tensor:
        ids, region = walk.ids[at], walk.region.take(at)
        if self.starts is not None and draw % 2 == 0:
            chosen = hashed_bits(ids, 1, seed=self.seed, purpose=f"{PURPOSE}.pool", draw=draw)[:, 0] % len(self.starts)
            return self.starts.to(region.x)[chosen]
        shape = tuple(region.x.shape[1:])
        noise = uniform_noise(ids, shape, seed=self.seed, purpose=f"{PURPOSE}.start", draw=draw).to(region.x)
        if draw % 2:
            noise = _tiled(noise)
        if draw % 4 >= 2:
            noise = noise.sign()
        return region.low + (noise + 1) / 2 * (region.high - region.low)

    def _iterate(self, walk: _Walk, iteration: int, count: int) -> None:
        """Estimate the normal, step along it, and bisect back to the boundary."""
        walk.normal = unit_l2(self._normal(walk, iteration, count) + MEMORY * walk.normal)
        update = walk.normal.sign() if self.norm == "linf" else walk.normal
        length = walk.distance / math.sqrt(iteration)
        best = walk.best.clone()
        at = torch.arange(len(walk.rows), device=best.device)
        for _ in range(HALVINGS):
            move = update[at] * per_sample(length[at], update) * walk.region.ball.unit()
            point = walk.region.take(at).project(best[at] + move)
            hit = walk.decide(at, point)
            walk.bisect(at[hit], point[hit], FINE)
            at = at[~hit]
            if len(at) == 0:
                return
            length = length / 2

    def _normal(self, walk: _Walk, iteration: int, count: int) -> Tensor:
        """Estimate the normal of the boundary, towards the wrong side, from decisions around the best points."""
        best, (n, *shape) = walk.best, walk.best.shape
        ball = walk.region.ball
        length = walk.distance * REACH * (math.sqrt(math.prod(shape)) if self.norm == "linf" else 1.0)
        weighted, plain, decided = torch.zeros_like(best), torch.zeros_like(best), torch.zeros_like(walk.distance)
        for first in range(0, count, PIECE):
            few = min(PIECE, count - first)
            noise = _directions(few, best, block_seed(self.seed, f"{PURPOSE}.{self.norm}", iteration, first))
            for part in torch.split(torch.arange(n, device=best.device), max(1, walk.model.batch_size.current // few)):
                again = part.repeat_interleave(few)
                move = (noise * length[part].view(-1, *[1] * noise.ndim)).flatten(0, 1) * ball.unit()
                point = walk.region.take(again).project(best[again] + move)
                moved = ball.scaled(point - best[again]).view(len(part), few, -1)
                sign = walk.decide(again, point).to(best.dtype).view(len(part), 1, few) * 2 - 1
                weighted[part] += (sign @ moved)[:, 0].view(-1, *shape)
                plain[part] += moved.sum(dim=1).view(-1, *shape)
                decided[part] += sign.sum(dim=(1, 2))
        mean = per_sample(decided / count, best)
        # Where all decisions are alike, the baseline would leave nothing of them.
        return unit_l2(torch.where(mean.abs() == 1, weighted, weighted - mean * plain))


@dataclass
class _Walk:
    """Where the samples that are still under way stand: `best` is their nearest point that is classified wrongly.

    Attributes
    ----------
    rows : int64 Tensor (n,)
        Their rows in the batch.
    distance : Tensor (n,)
        Of `best`, in units of the radius; infinite where none is known.
    spent : int64 Tensor (n,)
        Queries made.
    normal : Tensor like best
        The boundary's normal as the estimates so far have it, of length 1.
    """

    model: Model
    region: Region
    goal: Goal
    ids: Tensor
    rows: Tensor
    best: Tensor
    distance: Tensor
    spent: Tensor
    normal: Tensor

    @classmethod
    def begin(cls, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> _Walk:
        """Stand at the samples, without any point that is classified wrongly."""
        rows = torch.arange(len(x), device=x.device)
        far = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        return cls(model, ball.around(x), goal, ids, rows, x.clone(), far, torch.zeros_like(rows), torch.zeros_like(x))

    def decide(self, at: Tensor, point: Tensor) -> Tensor:
        """Tell which points are classified wrongly, as many at a time as go into a batch; counts the queries."""
        self.spent.index_add_(0, at, torch.ones_like(at))
        goal, size = self.goal.take(at), self.model.batch_size.current
        hits = []
        for first in range(0, len(at), size):
            part = torch.arange(first, min(first + size, len(at)), device=at.device)
            hits.append(goal.take(part).broken(output_of(self.model, point[part])))
        return torch.cat(hits) if hits else torch.zeros_like(at, dtype=torch.bool)

    def wrong(self, at: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples and points of those that are classified wrongly."""
        hit = self.decide(at, point)
        return at[hit], point[hit]

    def bisect(self, at: Tensor, far: Tensor, steps: int) -> None:
        """Bring wrong points to the boundary, and keep those that end nearer than the best so far.

        In L2 along the line to the sample; in L∞ by shrinking the largest change (algorithm 1).
        """
        if len(at) == 0:
            return
        region, ball = self.region.take(at), self.region.ball
        change = far - region.x
        near, end = far, self._size(at, far)
        right, wrong = torch.zeros_like(end), end if ball.norm == "linf" else torch.ones_like(end)
        for _ in range(steps):
            middle = per_sample((right + wrong) / 2, far)
            most = middle * ball.unit()
            moved = torch.minimum(torch.maximum(change, -most), most) if ball.norm == "linf" else change * middle
            point = region.project(region.x + moved)
            hit = self.decide(at, point)
            near = torch.where(per_sample(hit, far), point, near)
            middle = middle.flatten()
            right, wrong = torch.where(hit, right, middle), torch.where(hit, middle, wrong)
        distance = self._size(at, near)
        better = distance < self.distance[at]
        self.best[at] = torch.where(per_sample(better, far), near, self.best[at])
        self.distance[at] = torch.where(better, distance, self.distance[at])

    def leave(self, found: Candidates, done: Tensor) -> None:
        """Note what was found for the samples that are done, and go on without them."""
        if not bool(done.any()):
            return
        broken = done & self.distance.isfinite()
        found.x_adv[self.rows[broken]] = self.best[broken]
        found.broken[self.rows[broken]] = True
        keep = (~done).nonzero()[:, 0]
        self.region, self.goal = self.region.take(keep), self.goal.take(keep)
        for name in ("ids", "rows", "best", "distance", "spent", "normal"):
            setattr(self, name, getattr(self, name)[keep])

    def _size(self, at: Tensor, point: Tensor) -> Tensor:
        return size_of(self.region.ball.scaled(point - self.region.x[at]), self.region.ball.norm)


def _directions(count: int, like: Tensor, seed: int) -> Tensor:
    """Return random directions of L2 length 1, (count, …)."""
    noise = torch.randn((count, *like.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(like)
    return noise / per_sample(l2_norm(noise).clamp_min(1e-12), noise)


def _tiled(noise: Tensor) -> Tensor:
    """Give neighbours in the last two axes one value: `TILES` tiles a side."""
    for axis in (-2, -1):
        if noise.ndim > 2:
            side = noise.shape[axis]
            tile = max(1, side // TILES)
            first = torch.arange(side, device=noise.device) // tile * tile
            noise = noise.index_select(axis, first)
    return noise
