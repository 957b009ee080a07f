"""FAB (Croce & Hein 2020): the closest example, by steps onto the boundary as the gradient sees it, for L∞, L2 and L1."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack, output_of
from audit.attacks.constraints import NEAREST
from audit.attacks.geometry import Ball, Norm, Region, per_sample, size_of
from audit.attacks.goal import Goal
from audit.attacks.steps import largest_entry, observe
from audit.errors import UsageError
from audit.model.wrapper import Model

LOOK_EVERY = 5  # steps between looks at who has left: each look is a sync on a GPU, each leaving a copy
TOWARDS_CLEAN = 0.1  # alpha_max, eta and beta of the paper, section 2.6 and appendix
OVERSHOOT = 1.05
BACK = 0.9
FLIP = 1e3  # a category outside the radius changes where that gains more than this part of the largest slope


class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack, towards one class at a time.

    Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", algorithm 1; the
    targeted form is that of "Reliable evaluation of adversarial robustness …", section 5. Each step linearises the lead of the
    target over the label at the current point, moves to the nearest point of the box where it is 0, a little beyond it, and a
    little towards the clean input; a point that is broken is pulled back towards the clean input by a tenth.

    The authors look again at the point that was pulled back: two forwards and one backward a step. Here the linearisation at
    the broken point itself, which lies nearer to the boundary, serves for it: one forward and one backward. That comes closer,
    but stays where it is; where an example within the radius is all that is wanted (`until_within`), a pulled-back point is the
    next step of its own in the first half of the steps. Of 37 images of an adversarially trained MNIST network on which attacks
    in L2 disagree, 12 are broken so, 2 without it, 7 by the authors' way at twice the forwards.

    Under constraints of tables the path is one of allowed points (see `Region.follow`). Categories outside the radius cost
    nothing: they are chosen first, by their slopes.

    Parameters
    ----------
    norm, seed
        See `Attack`; it draws nothing, so that the seed changes nothing.
    eps
        See `MinimumNormAttack`.
    steps
        Gradient steps towards each class.
    targets
        Number of classes, those that come closest on the clean input, nearest first; as many as there are where fewer. Where 0,
        one run goes to whichever class is closest at each step. Regression has none: it goes up, then down.
    until_within
        Whether a sample leaves once it has an example within `eps`, as in AutoAttack, rather than being brought still closer.
    """

    name = "fab"
    norms = ("linf", "l2", "l1")

    def __init__(
        self,
        norm: Norm = "linf",
        eps: float | None = None,
        *,
        steps: int = 100,
        targets: int = 9,
        until_within: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or targets < 0:
            raise UsageError(f"steps must be at least 1, targets at least 0; got {steps} and {targets}")
        self.steps, self.targets, self.until_within = steps, targets, until_within

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:  # noqa: ARG002  (no noise)
        """Look for the closest example of each sample of a batch; see `MinimumNormAttack`."""
        found = Candidates.start(x)
        distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        classes = None
        if self.targets and goal.task != "regression":
            classes = goal.nearest(output_of(model, x), self.targets)
        for rank in range(1 if classes is None else classes.shape[1]):
            for direction in (1.0, -1.0) if goal.task == "regression" else (1.0,):
                rows = (distance > self.eps).nonzero()[:, 0] if self.until_within else torch.arange(len(x), device=x.device)
                if len(rows) == 0:
                    return found
                aim = goal.take(rows) if classes is None else goal.take(rows).towards(classes[rows, rank])
                self._once(model, ball.around(x[rows]), aim, direction, rows, found, distance)
        return found

    def _once(
        self, model: Model, region: Region, goal: Goal, direction: float, rows: Tensor, found: Candidates, distance: Tensor
    ) -> None:
        """Run towards one class for the samples at `rows`, and write what it finds into `found` and `distance`."""
        point = region.x
        for k in range(self.steps):
            gradient, lead, output = observe(model, point, partial(_lead, goal, direction))
            hit = self._note(found, distance, rows, region, goal, direction, point, output)
            if k % LOOK_EVERY == 0:
                largest = largest_entry(gradient)
                found.grad_nan[rows] |= ~torch.isfinite(largest)
                found.grad_zero[rows] &= largest == 0
                keep = distance[rows] > self.eps if self.until_within else torch.ones_like(hit)
                if not bool(keep.all()):
                    rows, point, region, goal = rows[keep], point[keep], region.take(keep), goal.take(keep)
                    gradient, lead, hit = gradient[keep], lead[keep], hit[keep]
                if len(rows) == 0:
                    return
            ahead = _advance(region, point, gradient.nan_to_num(0.0, 0.0, 0.0), lead.nan_to_num(0.0, 0.0, 0.0), hit)
            if self.until_within and k < self.steps // 2:
                ahead = torch.where(per_sample(hit, point), region.follow(torch.lerp(region.x, point, BACK)), ahead)
            point = ahead
        # The last point was not looked at yet: one forward says what came of it.
        self._note(found, distance, rows, region, goal, direction, point, output_of(model, point))

    def _note(
        self,
        found: Candidates,
        distance: Tensor,
        rows: Tensor,
        region: Region,
        goal: Goal,
        direction: float,
        point: Tensor,
        output: Tensor,
    ) -> Tensor:
        """Keep the points that are the closest so far; return which samples are broken there."""
        hit, margin = goal.broken(output), goal.margin(output, direction)
        size = region.ball.distance(region.x, point)
        closer = hit & (size < distance[rows])
        distance[rows] = torch.where(closer, size, distance[rows])
        found.x_adv[rows] = torch.where(per_sample(closer, point), point, found.x_adv[rows])
        found.broken[rows] |= hit
        first = found.loss_start[rows]
        found.loss_start[rows] = torch.where(first.isnan(), margin, first)
        # A margin beyond the radius says nothing about the radius.
        inside = torch.where(size <= self.eps, margin, -torch.inf)
        found.loss_end[rows] = torch.fmax(found.loss_end[rows], inside)
        return hit


def _lead(goal: Goal, direction: float, output: Tensor) -> Tensor:
    """Return what is 0 on the boundary and above 0 beyond it."""
    loss = goal.loss(output, direction, "margin")
    return loss - goal.tolerance if goal.task == "regression" else loss


def _advance(region: Region, point: Tensor, gradient: Tensor, lead: Tensor, hit: Tensor) -> Tensor:
    """Return the next point of each sample: beyond the boundary that the gradient sees, between point and clean input."""
    x, ball = region.x, region.ball
    back = torch.where(per_sample(hit, point), torch.lerp(x, point, BACK), point)
    if ball.rules is not None:
        back, x = _with_categories(region, back, gradient), _with_categories(region, x, gradient)
    starts = torch.cat((back, x))
    gap = -torch.cat((lead, lead)) - (torch.cat((gradient, gradient)) * (starts - torch.cat((point, point)))).flatten(1).sum(
        dim=1
    )
    move = onto_plane(starts, torch.cat((gradient, gradient)), gap, region)
    size = size_of(ball.scaled(move), ball.norm).clamp_min(1e-8)
    near, far = size.chunk(2)
    share = per_sample((near / (near + far)).clamp_max(TOWARDS_CLEAN), x)
    first, second = (starts + OVERSHOOT * move).chunk(2)
    return region.follow(torch.lerp(first, second, share))


def _with_categories(region: Region, point: Tensor, gradient: Tensor) -> Tensor:
    """Return the points with those categories outside the radius that the gradient asks for most."""
    rules = region.ball.rules
    if rules is None or rules.most is None:
        return point
    slope = torch.where(rules.free, gradient, 0.0)
    size = per_sample(largest_entry(slope).clamp_min(torch.finfo(slope.dtype).tiny), slope)
    chosen = rules.settle(region.x, region.x + slope / size * FLIP, region.low, region.high, up=NEAREST, change=True)
    return torch.where(rules.free, chosen, point)


def onto_plane(start: Tensor, normal: Tensor, gap: Tensor, region: Region) -> Tensor:
    r"""Return the smallest moves after which a linear function has grown by `gap`, or as much as the box allows.

    They solve :math:`\min \|\delta\|_p` with :math:`\langle w, \delta\rangle = g` and :math:`l \le s + \delta \le h` exactly
    (Croce & Hein 2020, section 2.3). In units of the radius each input moves the way that its :math:`w_i` asks for, by
    :math:`\min(\lambda, m_i)` in L∞, :math:`\min(\lambda |w_i|, m_i)` in L2, where :math:`m_i` is the room up to the box; the
    growth is piecewise linear and concave in :math:`\lambda`. In L1 the inputs with the
    largest :math:`|w_i|` move as far as they can, one after the other.

    Parameters
    ----------
    start, normal : Tensor (k · n, …)
        Points of the box, and the function's gradients; the samples of `region` k times over.
    gap : Tensor (k · n,)
        By how much it should grow; below 0 to fall.
    """
    ball, times = region.ball, len(start) // max(len(region.x), 1)
    unit = ball.unit()
    weight = normal * unit
    # Divided by its largest entry, so that the square of a gradient of 1e-30 does not underflow.
    largest = largest_entry(weight)
    shrink = torch.where(largest > 0, 1 / largest.clamp_min(torch.finfo(weight.dtype).tiny), 0.0)
    weight, gap = weight * per_sample(gap.sign() * shrink, normal), gap.abs() * shrink
    high, low = region.high.repeat(times, *[1] * (start.ndim - 1)), region.low.repeat(times, *[1] * (start.ndim - 1))
    room = ball.scaled(torch.where(weight > 0, high - start, start - low)).clamp_min(0.0)
    steep, wide = weight.abs().flatten(1), room.flatten(1)
    fill = _fill_largest if ball.norm == "l1" else _fill_evenly
    moved = fill(steep, wide, gap[:, None], torch.ones_like(steep) if ball.norm == "linf" else steep)
    return weight.sign() * moved.view_as(weight) * unit


def _fill_evenly(steep: Tensor, room: Tensor, gap: Tensor, pace: Tensor) -> Tensor:
    """Return min(λ · pace, room) with the λ at which `steep` of it sums to `gap`; an input that is not steep stays.

    Newton's method on a concave, piecewise linear function: it comes from below, and has ended once no further input has come
    to the end of its room. Where all have, the gap is wider than the box.
    """
    room = room * (steep > 0)
    slope = steep * pace
    level, before = torch.zeros_like(gap), torch.full_like(gap, -1.0)
    while True:
        for _ in range(LOOK_EVERY):
            moved = torch.minimum(level * pace, room)
            left = torch.linalg.vecdot(slope, (moved < room).to(slope))[:, None]
            # A sample whose inputs stay free has its answer: it is not touched while others in the batch go on.
            going = (left > 0) & (left != before)
            short = (gap - torch.linalg.vecdot(steep, moved)[:, None]).clamp_min(0.0)
            level, before = torch.where(going, level + short / left.clamp_min(1e-30), level), left
        if not bool(going.any()):
            return torch.minimum(level * pace, room)


def _fill_largest(steep: Tensor, room: Tensor, gap: Tensor, pace: Tensor) -> Tensor:  # noqa: ARG001  (as `_fill_evenly`)
    """Return the room of the steepest inputs, one after the other, until `steep` of it sums to `gap`."""
    order = steep.argsort(dim=1, descending=True)
    slope, most = steep.gather(1, order), room.gather(1, order)
    before = (slope * most).cumsum(dim=1) - slope * most
    part = ((gap - before) / slope.clamp_min(1e-30)).clamp_min(0.0)
    return torch.zeros_like(steep).scatter(1, order, torch.minimum(torch.where(slope > 0, part, 0.0), most))
