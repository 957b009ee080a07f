"""Random search over few inputs (Croce et al. 2022), for L0 and L1: asks for outputs alone, batched on the device."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from audit.attacks.base import Candidates, output_of
from audit.attacks.geometry import Ball, Norm, Region
from audit.attacks.goal import Goal
from audit.attacks.queries import QueryAttack
from audit.data.noise import hashed_bits
from audit.model.wrapper import Model

SHARE = 0.3  # of the changed inputs that the first proposals replace
FALLS_AT = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the budget at which it falls
ROUNDING = 1e-4
LOOK_EVERY = 10  # queries between looks at who has left: each look is a sync on a GPU, each leaving a copy
INSIDE = 0.5  # share of a table's values in L0 that lie anywhere in the box: there an answer may change and change back


class SparseSearch(QueryAttack):
    """Random search over which inputs change, and to which end of the box; no gradient, so that none can be masked from it.

    Croce, Andriushchenko, Singh, Flammarion & Hein 2022, "Sparse-RS: a versatile framework for query-efficient sparse black-box
    adversarial attacks", algorithm 1: a set of as many inputs as may change goes to random ends of the box; each query puts
    some of them back at random and changes others, and is kept where the margin grows. Their share shrinks on a schedule.

    Here an input is one number, where theirs is a pixel of all channels. In L1, which the paper leaves out, inputs go to their
    ends one after the other until the radius is spent, the last one part of the way: the corners of ball and box together. In
    L0 half of a table's new values lie anywhere in the box. Regression: half of the queries push the output up, half down.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`; L0 or L1.
    queries
        Forwards a sample, the first point included.
    """

    name = "sparse_search"
    norms = ("l0", "l1")

    def __init__(self, norm: Norm = "l0", eps: float = 10, *, queries: int = 1000, seed: int = 0) -> None:
        super().__init__(norm, eps, queries=queries, seed=seed)

    def _search(
        self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor, found: Candidates, direction: float, queries: int
    ) -> None:
        """Search from one start and note in `found` what comes of it."""
        rows = (~found.broken).nonzero()[:, 0]
        if len(rows) == 0:
            return
        purpose = f"{self.name}.{ball.norm}" + ("" if direction > 0 else ".down")
        region, goal, ids = ball.around(x[rows]), goal.take(rows), ids.to(x.device)[rows]
        place = Place.nowhere(region)
        best = torch.full((len(rows),), -torch.inf, dtype=x.dtype, device=x.device)
        for query in range(queries):
            share = SHARE * 0.5 ** sum(query > at * queries for at in FALLS_AT)
            draw = partial(hashed_bits, ids, seed=self.seed, purpose=purpose, draw=query)
            tried = place.proposal(region, share if query else 1.0, draw(4 * x[0].numel()))
            point = region.settle(tried.point(region))
            output = output_of(model, point)
            margin, hit = goal.loss(output, direction, "margin"), goal.broken(output)
            if query == 0 and direction > 0:
                found.loss_start[rows] = margin
            better = margin > best
            place, best = tried.where(better, place), torch.where(better, margin, best)
            found.note(rows, point, margin, hit)
            if query % LOOK_EVERY == LOOK_EVERY - 1:
                keep = ~found.broken[rows]
                if not bool(keep.any()):
                    return
                if not bool(keep.all()):
                    rows, ids, best = rows[keep], ids[keep], best[keep]
                    region, goal, place = region.take(keep), goal.take(keep), place.take(keep)
        unbroken = (~found.broken[rows]).nonzero()[:, 0]
        found.x_adv[rows[unbroken]] = region.settle(place.point(region))[unbroken]


class Place:
    """Which inputs of each sample change, and where to: flat tensors (n, d).

    Attributes
    ----------
    key
        Inputs change in falling order of it, until the radius is spent; those that changed have 1 or more.
    target
        Where each input goes if it changes.
    """

    def __init__(self, key: Tensor, target: Tensor) -> None:
        self.key, self.target = key, target

    @classmethod
    def nowhere(cls, region: Region) -> Place:
        """Return the clean samples."""
        flat = region.x.flatten(1)
        return cls(torch.zeros_like(flat), flat)

    def take(self, rows: Tensor) -> Place:
        """Return the samples at `rows`."""
        return Place(self.key[rows], self.target[rows])

    def where(self, chosen: Tensor, other: Place) -> Place:
        """Return this place for the samples chosen, (n,), and elsewhere the other."""
        wide = chosen[:, None]
        return Place(torch.where(wide, self.key, other.key), torch.where(wide, self.target, other.target))

    def proposal(self, region: Region, share: float, numbers: Tensor) -> Place:
        """Put back a share of the inputs that changed, and line up all others in a new order, with new targets."""
        drop, order, side, inside = (part.to(self.key.dtype) / 2**32 for part in numbers.tensor_split(4, dim=1))
        held = self.key >= 1
        # At least one goes: the one of the lowest draw.
        least = torch.where(held, drop, 2.0).amin(dim=1, keepdim=True)
        stays = held & (drop >= share) & (drop > least)
        x, low, high = (part.flatten(1) for part in (region.x, region.low, region.high))
        end = torch.where(side < 0.5, low, high)
        end = torch.where(end == x, low + high - end, end)
        if region.ball.norm == "l0" and region.x.ndim == 2:
            end = torch.where(inside < INSIDE, low + side * (high - low), end)
        target = torch.where(stays, self.target, end)
        key = torch.where(stays, self.key, order.clamp_max(1 - 2**-20))
        return Place(key.masked_fill(low == high, -1.0), target)._marked(region)

    def _marked(self, region: Region) -> Place:
        idle = self.key.clamp_max(1 - 2**-20)
        marked = Place(torch.where(self._shares(region) > 0, 1 + self.key % 1, idle), self.target)
        # In L1 what comes anew takes its place in the order, and may take the radius from what was held: that is let go, too.
        return Place(torch.where(marked._shares(region) > 0, marked.key, idle), self.target)

    def point(self, region: Region) -> Tensor:
        """Return the changed samples."""
        flat, shares = region.x.flatten(1), self._shares(region)
        # A target that is reached is reached exactly.
        point = torch.where(shares >= 1, self.target, torch.lerp(flat, self.target, shares))
        return region.clip(point.view_as(region.x))

    def _shares(self, region: Region) -> Tensor:
        """Return how far each input goes towards its target, from 0 to 1."""
        ball, able = region.ball, self.key >= 0
        order = self.key.argsort(dim=1, descending=True, stable=True)
        if ball.norm == "l0":
            cost = able.to(self.key.dtype)
        else:
            cost = ball.scaled(self.target.view_as(region.x) - region.x).abs().flatten(1)
        spent = cost.gather(1, order).cumsum(dim=1)
        left = ball.eps * (1 - 1e-6) - (spent - cost.gather(1, order))
        if ball.norm == "l0":
            shares = (left >= 1 - 1e-3).to(cost)
        else:
            shares = (left / cost.gather(1, order).clamp_min(1e-12)).clamp(0.0, 1.0)
            # What rounding leaves of the radius moves nothing, and must not hold a place in the order.
            shares = shares * (shares > ROUNDING)
        return torch.zeros_like(shares).scatter_(1, order, shares) * able
