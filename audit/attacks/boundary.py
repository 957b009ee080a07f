"""What attacks of minimum norm share: the closest example so far, radii of each sample's own, and a walk along the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.attacks.base import Candidates
from audit.attacks.geometry import Ball, Norm, Region, l1_projection, l2_norm, per_sample, size_of
from audit.attacks.goal import Goal
from audit.attacks.steps import largest_entry
from audit.data.noise import uniform_noise
from audit.model.wrapper import Model

LOOK_EVERY = 5  # steps between looks at who has no gradient: each look is a sync on a GPU
OVERSHOOT = 1.1  # of the way to the boundary: 1 left more samples on the wrong side of it
# First reach of a step of the walk: of the largest change (L∞, L2), or of the width of the box.
TRUST = {"linf": 0.5, "l2": 0.5, "l1": 0.3, "l0": 1.0}
# And in a run from far away: 0.5 came less close to adversarially trained networks (in L∞ 0.01 to 0.06 did equally well). From
# the input, where a short run may still have a long way to go, these did much worse.
TRUST_FAR = {"linf": 0.03, "l2": 0.25, "l1": 0.3, "l0": 1.0}
TAPER_FAR = {"linf": 1, "l2": 2, "l1": 1, "l0": 1}  # power of the cosine by which it shrinks
LAST_TRUST = 0.01  # of the first
ENDLESS = 1e15  # a box wider than this has no end; an infinite one times a scale of 0 would be NaN

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf, "l0": torch.inf}
ROUNDS = 12  # of the search for a multiplier; piecewise linear, it is found in 4 to 8


@dataclass(frozen=True)
class Run:
    """One run of an attack: its number, its steps, and whether it begins at random; for regression, up (+1) or down (−1)."""

    number: int
    steps: int
    random: bool
    direction: float


def runs_of(goal: Goal, steps: int, restarts: int, first: int = 0, lead: int = 0) -> list[Run]:
    """Divide steps among runs, numbered from `first` on; for regression half of them go up, half down.

    Run 0 begins at the input, and for regression run 1, too; all others begin at random. Those that begin at the input share
    `lead` steps, the others the rest; all are equally long where `lead` is 0, or where none begins at the input.
    """
    ways = 2 if goal.task == "regression" else 1
    count = min(steps, max(restarts, ways))
    lead = lead if first == 0 and count > ways else 0
    lengths = [*_parts(lead, ways), *_parts(steps - lead, count - ways)] if lead else _parts(steps, count)
    runs = enumerate(lengths, start=first)
    return [Run(number, length, number >= ways, 1.0 if number % 2 == 0 else -1.0) for number, length in runs]


def _parts(steps: int, count: int) -> list[int]:
    """Divide steps into `count` parts, as equal as whole numbers are."""
    ends = [steps * number // count for number in range(count + 1)]
    return [ends[k + 1] - ends[k] for k in range(count)]


@dataclass(frozen=True)
class Sight:
    """What was seen at one point of each sample.

    Attributes
    ----------
    u : Tensor like x
        The change, in units of the radius.
    size : Tensor (n,)
        Its norm.
    gradient : Tensor like x
        Gradient of `excess` in units of the radius.
    excess : Tensor (n,)
        How far beyond the boundary the output is: the margin, or for regression the move less the tolerance.
    hit : bool Tensor (n,)
        Whether the sample is broken there.
    """

    u: Tensor
    size: Tensor
    gradient: Tensor
    excess: Tensor
    hit: Tensor

    def where(self, chosen: Tensor, other: Sight) -> Sight:
        """Return what was seen here for the samples chosen, (n,), and elsewhere for the others."""
        wide = per_sample(chosen, self.u)
        return Sight(
            torch.where(wide, self.u, other.u),
            torch.where(chosen, self.size, other.size),
            torch.where(wide, self.gradient, other.gradient),
            torch.where(chosen, self.excess, other.excess),
            torch.where(chosen, self.hit, other.hit),
        )


class Search:
    """A search for the closest example of each sample, in the whole box.

    Parameters
    ----------
    model, x, goal, ball, ids
        As `Attack.run` gets them.
    seed, purpose
        Of the noise.

    Attributes
    ----------
    found : Candidates
        What `Attack.run` returns.
    best, run_best : Sight
        The closest example so far of each sample, of all runs and of this one; its size is infinite where none was found.
    low, high : Tensor like x
        The box, as changes in units of the radius.
    width : Tensor (n,)
        The widest side of the box in units of the radius.
    most : Tensor (n,)
        The norm of the largest change.
    """

    def __init__(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor, *, seed: int, purpose: str) -> None:
        self.model, self.goal, self.ball, self.ids, self.norm = model, goal, ball, ids, ball.norm
        self.seed, self.purpose = seed, purpose
        self.region, self.found = whole_box(ball, x), Candidates.start(x)
        self.low, self.high = ball.scaled(self.region.low - x), ball.scaled(self.region.high - x)
        width = (self.high - self.low).flatten(1).amax(dim=1)
        # Where there is no end to the box, the sample's own values say what is wide.
        own = ball.scaled(x).abs().flatten(1).amax(dim=1).clamp_min(1.0)
        self.width = torch.where(width < ENDLESS, width, own)
        self.most = size_of(self.high.maximum(-self.low).clamp_max(ENDLESS), ball.norm)
        far = torch.full_like(self.width, torch.inf)
        zero = torch.zeros_like(x)
        self.nothing = Sight(zero, far, zero, torch.zeros_like(far), torch.zeros_like(self.found.broken))
        self.best = self.run_best = self.nothing
        self.direction = 1.0
        self.looks = 0

    def begin(self, run: Run) -> None:
        """Begin a run, with no example of its own yet."""
        self.direction, self.run_best = run.direction, self.nothing

    def see(self, u: Tensor) -> Sight:
        """Look at the changes `u`, brought into the box, and keep those that are the closest examples so far."""
        ball, found = self.ball, self.found
        point = self.region.follow(self.region.x + u * ball.unit())
        u = ball.scaled(point - self.region.x)
        gradient, lead, margins, hit = self._look(point)
        if self.looks == 0:
            found.loss_start.copy_(margins)
        torch.maximum(found.loss_end, margins, out=found.loss_end)
        if self.looks % LOOK_EVERY == 0:
            largest = largest_entry(gradient)
            found.grad_nan.logical_or_(~torch.isfinite(largest))
            found.grad_zero.logical_and_(largest == 0)
        self.looks += 1
        # One NaN must not stop, nor spread over, the whole sample.
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * ball.unit()
        excess = (lead - self.goal.tolerance).nan_to_num(0.0, 0.0, 0.0)
        seen = Sight(u, size_of(u, self.norm), gradient, excess, hit)
        closer = hit & (seen.size < self.best.size)
        self.best = seen.where(closer, self.best)
        self.run_best = seen.where(hit & (seen.size < self.run_best.size), self.run_best)
        found.x_adv.copy_(torch.where(per_sample(closer, point), point, found.x_adv))
        found.broken.logical_or_(closer)
        return seen

    def _look(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return gradient and lead of the target, if there is one, else of any other class; margins; and who is broken."""
        goal, hit, margins = self.goal, torch.zeros(0), torch.zeros(0)

        def loss(output: Tensor) -> Tensor:
            nonlocal hit, margins
            lead = goal.loss(output, self.direction, "margin")
            hit = goal.broken(output.detach())
            margins = lead.detach() if goal.target is None else replace(goal, target=None).loss(output.detach(), 1.0, "margin")
            return lead

        gradient, lead = self.model.gradient(loss, point)
        return gradient, lead, margins, hit

    def aim(self, most: int) -> int:
        """Take as each sample's target the class whose boundary is nearest as the gradient has it; return the looks made.

        The margin leads to the class with the highest logit, whose boundary may be further away. Of at most `most` classes,
        those with the highest logits at the first look, each is looked at once.
        """
        if self.goal.task == "regression" or most < 2:
            return 0
        x, untargeted = self.region.x, replace(self.goal, target=None)
        with torch.no_grad():
            classes = untargeted.nearest(self.model.logits(x), most)
        if classes.shape[1] < 2:
            return 1
        target, nearest = classes[:, 0], torch.full_like(self.width, torch.inf)
        for number in range(classes.shape[1]):
            self.goal = untargeted.towards(classes[:, number])
            seen = self.see(torch.zeros_like(x))
            away = -seen.excess / dual_norm(seen.gradient, self.norm).clamp_min(1e-30)
            target = torch.where(away < nearest, classes[:, number], target)
            nearest = nearest.minimum(away)
        self.goal = untargeted.towards(target)
        return classes.shape[1] + 1

    def anywhere(self, draw: int) -> Tensor:
        """Return random changes of all inputs, to places of the box."""
        shape = tuple(self.region.x.shape[1:])
        noise = uniform_noise(self.ids, shape, seed=self.seed, purpose=f"{self.purpose}.start", draw=draw).to(self.low)
        return (noise * per_sample(self.width, noise)).maximum(self.low).minimum(self.high)

    def walk(self, steps: int, seen: Sight, *, far: bool = False) -> None:
        """Walk along the boundary to where it comes closest, beginning at the run's closest example, or else at `seen`.

        `far` says that the run began far away: its steps are shorter (`TRUST_FAR`).

        Not at the closest of all runs, which was walked to before: another place of the boundary may lead closer.

        Each step goes to the smallest change that is beyond the boundary as the last look has it, linearised there, and
        within a shrinking L∞ distance of that look (Brendel et al. 2019, "Accurate, reliable and fast robustness evaluation",
        equation 2, whose trust region is of L2; within L∞ the answer has a closed form in all four norms).
        """
        seen = self.run_best.where(self.run_best.hit, seen)
        trust, taper = (TRUST_FAR[self.norm], TAPER_FAR[self.norm]) if far else (TRUST[self.norm], 1)
        for k in range(steps):
            share = max(((1 + math.cos(math.pi * k / steps)) / 2) ** taper, LAST_TRUST)
            near = size_of(seen.u, "linf") if self.norm in ("linf", "l2") else self.width
            reach = per_sample(trust * share * near, seen.u)
            need = (seen.gradient * seen.u).flatten(1).sum(dim=1) - seen.excess + (OVERSHOOT - 1) * seen.excess.abs()
            low, high = (seen.u - reach).maximum(self.low), (seen.u + reach).minimum(self.high)
            seen = self.see(smallest(seen.gradient, need, low, high, self.norm))


def whole_box(ball: Ball, x: Tensor) -> Region:
    """Return the points of the box around each sample, whatever the radius."""
    wide = replace(ball, norm="linf")
    return replace(wide, eps=min(wide.reach(tuple(x.shape[1:])), ENDLESS)).around(x)


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """Return how fast a linear function can rise for each unit of the norm, (n,); for L0 as for L1."""
    size: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
    return size


def within(delta: Tensor, norm: Norm, radius: Tensor) -> Tensor:
    """Bring changes in units of the radius into radii of their own, (n,), by the nearest point."""
    if norm == "linf":
        reach = per_sample(radius, delta)
        return torch.minimum(torch.maximum(delta, -reach), reach)
    if norm == "l2":
        return delta * per_sample((radius / l2_norm(delta).clamp_min(1e-30)).clamp_max(1.0), delta)
    if norm == "l1":
        near: Tensor = l1_projection(delta, delta.abs(), radius[:, None])
        return near
    flat = delta.flatten(1).abs()
    order = flat.argsort(dim=1, descending=True)
    kept = torch.arange(flat.shape[1], device=delta.device) < radius[:, None]
    chosen = torch.zeros_like(kept).scatter_(1, order, kept).view_as(delta)
    return torch.where(chosen, delta, torch.zeros_like(delta))


def smallest(gradient: Tensor, need: Tensor, low: Tensor, high: Tensor, norm: Norm) -> Tensor:
    r"""Return the smallest change `u` with :math:`g \cdot u \ge` `need` and `low` ≤ u ≤ `high`, in the norm; shape (n, …).

    Where no such change rises enough, the one that rises most. For L∞ and L2 it is :math:`\min(\max(\lambda q, l), h)` with
    :math:`q = \operatorname{sign}(g)` and :math:`g`, for the smallest :math:`\lambda \ge 0` that rises enough. For L1 and L0
    inputs go to the end of their interval one after the other, those that rise most for each unit (for each input) first,
    the last one as far as it needs to: the greedy solution of a linear programme with one constraint.
    """
    if norm in ("linf", "l2"):
        return _multiplied(gradient, gradient.sign() if norm == "linf" else gradient, need, low, high)
    g, lower, upper = gradient.flatten(1), low.flatten(1), high.flatten(1)
    base = torch.zeros_like(g).maximum(lower).minimum(upper)
    far = torch.where(g > 0, upper, lower)
    room = far - base
    gain = (g * room).clamp_min(0.0)
    short = need - (g * base).sum(dim=1)
    if norm == "l0":
        # An input that cannot go back to zero is changed anyhow: all of it is free.
        key = gain.where(base == 0, torch.inf)
        key = key.where(gain > 0, 0.0)
    else:
        key = g.abs()
    order = key.argsort(dim=1, descending=True)
    gains = gain.gather(1, order)
    before = gains.cumsum(dim=1) - gains
    share = ((short[:, None] - before) / gains.clamp_min(1e-30)).clamp(0.0, 1.0)
    taken = torch.zeros_like(g).scatter_(1, order, share.where(gains > 0, 0.0))
    return (base + taken * room).view_as(gradient)


def _multiplied(gradient: Tensor, direction: Tensor, need: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Search for the multiplier by Newton's method between two bounds, with all directions folded to point upwards."""
    q, lower, upper = direction.flatten(1), low.flatten(1), high.flatten(1)
    sign, rise = q.sign(), gradient.flatten(1).abs()
    speed = q.abs()
    up = torch.where(q > 0, upper, -lower).where(q != 0, 0.0)
    down = torch.where(q > 0, lower, -upper).where(q != 0, 0.0)
    top = (up / speed.where(q != 0, 1.0)).amax(dim=1).clamp_min(0.0)  # every input is at its end
    bottom = torch.zeros_like(top)
    level = bottom
    for _ in range(ROUNDS):
        z = level[:, None] * speed
        risen = (rise * z.maximum(down).minimum(up)).sum(dim=1)
        enough = risen >= need
        top, bottom = torch.where(enough, level, top), torch.where(enough, bottom, level)
        slope = (rise * speed * ((z >= down) & (z < up))).sum(dim=1)
        newton = level + (need - risen) / slope.clamp_min(1e-30)
        # A hair more than enough, so that the search ends from above.
        newton = newton * (1 + 1e-6)
        level = torch.where((newton > bottom) & (newton < top), newton, (bottom + top) / 2)
    still = (q == 0) & ((lower > 0) | (upper < 0))  # no direction, and zero is out of reach
    moved = sign * (top[:, None] * speed).maximum(down).minimum(up)
    return torch.where(still, torch.zeros_like(q).maximum(lower).minimum(upper), moved).view_as(gradient)
