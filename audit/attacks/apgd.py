"""Auto-PGD (Croce & Hein 2020, 2021): steps with momentum whose length halves itself, for L∞, L2 and L1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.attacks.base import Attack, Candidates, output_of
from audit.attacks.geometry import Ball, Norm, Region, per_sample
from audit.attacks.goal import Goal, LossName
from audit.attacks.steps import largest_entry, observe, unit_l2
from audit.data.noise import normal_noise
from audit.errors import UsageError
from audit.model.wrapper import Model

LOOK_EVERY = 5  # steps between looks at who has left and who is stuck: each look is a sync on a GPU, each leaving a copy
MOMENTUM = 0.75
NOISE = 32.0  # L1: size of the noise of the start over the radius, before the projection, were it of one size everywhere
RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # L1: the search shrinks over these radii, with these shares of the steps

Elsewhere = Callable[[Region, Tensor, int], Tensor]


class APGD(Attack):
    """Auto-PGD: projected gradient ascent with momentum, which needs no step size.

    Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    section 3 and algorithm 1. In L1 the variant of Croce & Hein 2021, "Mind the Box: l1-APGD for sparse adversarial attacks on
    image classifiers", section 4: sparse steps, over radii of 3, 2 and 1 times that of the attack.

    A sample that is broken leaves the batch; the next run attacks what is left. A sample whose gradient is zero is started
    again elsewhere in the ball, which the papers do not do.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    loss
        ``ce``, ``margin`` or ``dlr``; see `Goal.loss`.
    steps
        Gradient steps a run.
    restarts
        Runs from different random starts, for each target.
    targets
        Runs are towards this many classes in turn, those that come closest on the clean input, nearest first; as many as there
        are where fewer. Towards none where 0. Regression has none: a restart goes up, then down.
    rho
        Share of the steps since the last checkpoint that must raise the loss, or else the step is halved.
    """

    name = "apgd"
    norms = ("linf", "l2", "l1")

    def __init__(
        self,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        *,
        loss: LossName = "ce",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 0,
        rho: float = 0.75,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or restarts < 1 or targets < 0:
            raise UsageError(f"steps and restarts must be at least 1, targets at least 0; got {steps}, {restarts}, {targets}")
        if loss not in ("ce", "margin", "dlr"):
            raise UsageError(f"loss must be ce, margin or dlr, got {loss!r}")
        self.loss, self.steps, self.restarts, self.targets, self.rho = loss, steps, restarts, targets, rho

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`. The candidate of an unbroken sample is the point of its highest loss."""
        found = Candidates.start(x)
        classes = None
        if self.targets and goal.task != "regression":
            classes = goal.nearest(output_of(model, x), self.targets)
        directions = (1.0, -1.0) if goal.task == "regression" else (1.0,)
        for rank in range(1 if classes is None else classes.shape[1]):
            for restart in range(self.restarts):
                for direction in directions:
                    rows = (~found.broken).nonzero()[:, 0]
                    if len(rows) == 0:
                        return found
                    aim = goal.take(rows) if classes is None else goal.take(rows).towards(classes[rows, rank])
                    purpose = f"{self.name}.{self.loss}.{rank}.{restart}" + ("" if direction > 0 else ".down")
                    seen = self._once(model, ball, x[rows], aim, ids[rows], purpose, direction)
                    _write(found, rows, seen)
        return found

    def _once(self, model: Model, ball: Ball, x: Tensor, goal: Goal, ids: Tensor, purpose: str, direction: float) -> Ascended:
        def elsewhere(region: Region, rows: Tensor, k: int) -> Tensor:
            return region.random(ids[rows], seed=self.seed, purpose=purpose, draw=k + 1)

        region, stages = ball.around(x), [(1.0, self.steps)]
        if ball.norm == "l1" and self.steps >= len(RADII):
            counts = [math.ceil(share * self.steps) for _, share in RADII[:-1]]
            stages = list(zip((radius for radius, _ in RADII), [*counts, self.steps - sum(counts)], strict=True))
        start, seen = region.x, list[Ascended]()
        for factor, steps in stages:
            wide = region if factor == 1 else replace(ball, eps=ball.eps * factor).around(x)
            if seen:
                begin = wide.project(start)
            elif ball.norm == "l1":
                begin = _sparse_start(wide, ids, self.seed, purpose)
            else:
                begin = wide.random(ids, seed=self.seed, purpose=purpose)
            more = ascend(
                model, wide, goal, begin, steps=steps, kind=self.loss, direction=direction, rho=self.rho,
                elsewhere=elsewhere, stop=factor == 1, sparse=ball.norm == "l1",
            )  # fmt: skip
            start = more.point
            seen.append(more)
        zero, nan = torch.stack([one.zero for one in seen]).all(dim=0), torch.stack([one.nan for one in seen]).any(dim=0)
        return replace(seen[-1], loss_start=seen[0].loss_start, zero=zero, nan=nan)


@dataclass(frozen=True)
class Ascended:
    """What one ascent found for n samples.

    Attributes
    ----------
    point : Tensor (n, …)
        The first point that broke its sample, else that of the highest loss.
    broken : bool Tensor (n,)
        Whether `point` was seen to break its sample.
    loss_start, loss_end : Tensor (n,)
        Margin (see `Goal.margin`) at the starting point, and the highest one seen.
    zero : bool Tensor (n,)
        Whether the gradient was exactly zero wherever it was looked at.
    nan : bool Tensor (n,)
        Whether the gradient was NaN or infinite anywhere that it was looked at.
    """

    point: Tensor
    broken: Tensor
    loss_start: Tensor
    loss_end: Tensor
    zero: Tensor
    nan: Tensor


def ascend(
    model: Model,
    region: Region,
    goal: Goal,
    start: Tensor,
    *,
    steps: int,
    kind: LossName = "ce",
    direction: float = 1.0,
    rho: float = 0.75,
    first_step: float | None = None,
    elsewhere: Elsewhere | None = None,
    stop: bool = True,
    sparse: bool = False,
) -> Ascended:
    """Run Auto-PGD once from points of the caller's own: one forward and one backward a step, and a forward at the end.

    Parameters
    ----------
    region
        Around the n samples; `start`, (n, …), must lie in it.
    goal
        Of the n samples, with a target for each or none.
    kind, direction
        The loss to raise; see `Goal.loss`. Its scale is that of the outputs at `start`, so that its values can be compared.
    rho
        See `APGD`.
    first_step
        Length of the first step in units of the radius; the papers' where None: 2 (L∞, L2), 1 (L1).
    elsewhere
        Says where samples whose gradient is zero start again: takes their region, their positions among the n, and the step.
    stop
        Whether a sample leaves once it is broken; where False, `Ascended.point` is that of the highest loss.
    sparse
        L1: whether the first steps are as sparse as `start` is; a fifth of the inputs change where False.
    """
    state = _Ascent(region, goal, start, kind, direction, stop=stop)
    length = first_step or (1.0 if region.ball.norm == "l1" else 2.0)
    pace = _Sparse(state, length, steps, sparse) if region.ball.norm == "l1" else _Halving(state, length, steps, rho)
    for k in range(steps):
        largest = state.look(model, flags=k % LOOK_EVERY == 0)
        if k == 0:
            state.out.loss_start.copy_(state.margin)
        pace.check(state, first=k == 0)
        if largest is not None:
            keep = state.watch(largest, k, elsewhere)
            if keep is not None:
                pace.take(keep)
            if len(state.rows) == 0:
                return state.out
        state.move(pace.step(state), 1.0 if k == 0 or region.ball.norm == "l1" else MOMENTUM)
    # The last point was not looked at yet: one forward says what came of it.
    output = output_of(model, state.point)
    state.see(state.loss(output), output, None)
    state.write()
    return state.out


class _Ascent:
    """The ascent of the samples that still stand: where they are, where they came from, and the best that they saw."""

    def __init__(self, region: Region, goal: Goal, start: Tensor, kind: LossName, direction: float, *, stop: bool) -> None:
        self.region, self.goal, self.kind, self.direction, self.stop = region, goal, kind, direction, stop
        flags = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        low = torch.full((len(start),), -torch.inf, dtype=start.dtype, device=start.device)
        self.rows = torch.arange(len(start), device=start.device)
        self.point, self.before, self.best = start, start, start
        self.losses, self.best_loss, self.margin, self.broken = low, low, low, flags
        self.gradient = self.best_gradient = torch.zeros_like(start)
        self.scale: Tensor | None = None
        self.out = Ascended(start.clone(), flags.clone(), low * torch.nan, low.clone(), ~flags, flags.clone())

    def loss(self, output: Tensor) -> Tensor:
        """Return the loss, under the scale of the first outputs."""
        if self.scale is None and self.kind == "ce" and self.goal.task != "regression":
            self.scale = self.goal.sharpness(output.detach())
        return self.goal.loss(output, self.direction, self.kind, scale=self.scale)

    def look(self, model: Model, *, flags: bool) -> Tensor | None:
        """Look at the loss and its gradient where the samples are; return the gradient's largest entries if asked to."""
        gradient, losses, output = observe(model, self.point, self.loss)
        largest = largest_entry(gradient) if flags else None
        # One NaN must not stop, nor spread over, the whole sample.
        if self.region.ball.norm == "linf":
            gradient = self.region.signs(gradient).nan_to_num_(0.0)
        else:
            gradient = self.region.slopes(gradient.nan_to_num(0.0, 0.0, 0.0))
        self.see(losses, output, unit_l2(gradient) if self.region.ball.norm == "l2" else gradient)
        return largest

    def see(self, losses: Tensor, output: Tensor, gradient: Tensor | None) -> None:
        """Note what was seen at the samples' points."""
        hit, margin = self.goal.broken(output), self.goal.margin(output, self.direction)
        better = losses > self.best_loss
        if self.stop:
            better = (better | hit) & ~self.broken
        wide = per_sample(better, self.point)
        self.best = torch.where(wide, self.point, self.best)
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.broken = self.broken | hit if self.stop else torch.where(better, hit, self.broken)
        self.margin, self.losses = torch.fmax(self.margin, margin), losses
        if gradient is not None:
            self.gradient, self.best_gradient = gradient, torch.where(wide, gradient, self.best_gradient)

    def watch(self, largest: Tensor, k: int, elsewhere: Elsewhere | None) -> Tensor | None:
        """Note gradients that are zero or NaN, let the broken leave, and start those without a gradient elsewhere.

        Returns
        -------
        keep : bool Tensor (m,) or None
            Who is left; None where nobody left.
        """
        # Where a sample is broken, a loss may well have come to its end.
        out, rows, stuck = self.out, self.rows, (largest == 0) & ~self.broken
        out.nan[rows] |= ~torch.isfinite(largest)
        out.zero[rows] &= stuck
        keep = None
        if self.stop and bool(self.broken.any()):
            keep = ~self.broken
            self.write()
            self._take(keep)
            stuck = stuck[keep]
        if elsewhere is not None and bool(stuck.any()):
            at = stuck.nonzero()[:, 0]
            self.point = self.point.index_copy(0, at, elsewhere(self.region.take(at), self.rows[at], k))
            self.before = self.before.index_copy(0, at, self.point[at])
        return keep

    def write(self) -> None:
        """Write down what came of the samples that are still here."""
        rows, out = self.rows, self.out
        out.point[rows], out.broken[rows], out.loss_end[rows] = self.best, self.broken, self.margin

    def move(self, candidate: Tensor, share: float) -> None:
        """Go `share` of the way to the candidate, brought into the region, and the rest along the last move."""
        here = self.point
        if share < 1:
            candidate = torch.lerp(here, self.region.nearest(candidate), share)
            candidate.add_(here, alpha=1 - share).sub_(self.before, alpha=1 - share)
        self.point, self.before = self.region.follow(candidate), here

    def back(self, to_best: Tensor) -> None:
        """Bring the samples in this mask back to the best point that they saw."""
        wide = per_sample(to_best, self.point)
        self.point = torch.where(wide, self.best, self.point)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)

    def _take(self, keep: Tensor) -> None:
        self.region, self.goal, self.rows = self.region.take(keep), self.goal.take(keep), self.rows[keep]
        if self.scale is not None:
            self.scale = self.scale[keep]
        for name in ("point", "before", "best", "losses", "best_loss", "margin", "broken", "gradient", "best_gradient"):
            setattr(self, name, getattr(self, name)[keep])


class _Halving:
    """Length of the steps in L∞ and L2 (Croce & Hein 2020, section 3.2): halved at checkpoints where a step did not pay.

    At a checkpoint a sample's step is halved, and the sample brought back to the best point that it saw, where at most a share
    `rho` of the steps since the last one raised its loss, or where its step was not halved there and its best loss has not
    grown since. The first checkpoint is at 22 % of the steps; the distance to the next falls by 3 % each time, down to 6 %.
    """

    def __init__(self, state: _Ascent, length: float, steps: int, rho: float) -> None:
        self.length = torch.full_like(state.losses, length)
        self.rho, self.period = rho, max(int(0.22 * steps), 1)
        self.least, self.fall = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
        self.count, self.risen = 0, torch.zeros_like(self.length)
        self.reached = self.previous = state.losses
        self.halved = torch.ones_like(state.broken)

    def check(self, state: _Ascent, *, first: bool) -> None:
        """Count whether the loss has risen; halve steps at a checkpoint."""
        if first:
            self.previous = self.reached = state.best_loss
            return
        self.risen = self.risen + (state.losses > self.previous)
        self.previous, self.count = state.losses, self.count + 1
        if self.count < self.period:
            return
        halve = (self.risen <= self.rho * self.period) | (~self.halved & (self.reached >= state.best_loss))
        state.back(halve)
        self.length = torch.where(halve, self.length / 2, self.length)
        self.halved, self.reached = halve, state.best_loss
        self.count, self.risen = 0, torch.zeros_like(self.risen)
        self.period = max(self.period - self.fall, self.least)

    def step(self, state: _Ascent) -> Tensor:
        """Return where a step would lead, in the region or not."""
        ball = state.region.ball
        length = per_sample(self.length * ball.eps, state.point)
        length = length if ball.scale is None else length * ball.scale
        return torch.addcmul(state.point, state.gradient, length)

    def take(self, keep: Tensor) -> None:
        """Keep these samples."""
        self.length, self.risen, self.halved = self.length[keep], self.risen[keep], self.halved[keep]
        self.reached, self.previous = self.reached[keep], self.previous[keep]


class _Sparse:
    """Sparse steps in L1 (Croce & Hein 2021, section 4.2): along the sign of the largest entries of the gradient.

    How many, is two thirds of the inputs that differ at the best point, looked at every 4 % of the steps. Where that number
    fell by more than 5 %, the step takes its first length again and the sample is brought back to its best point; elsewhere the
    step shrinks by a factor of 1.5, to a tenth at the least.
    """

    def __init__(self, state: _Ascent, length: float, steps: int, sparse: bool) -> None:
        self.first, self.length = length, torch.full_like(state.losses, length)
        self.inputs = state.point[0].numel() if len(state.point) else 1
        self.changed = torch.full_like(state.losses, float(self.inputs))
        self.share = torch.full_like(state.losses, 0.2)
        if sparse:
            self.changed = self._changed(state)
            self.share = self.changed / self.inputs / 1.5
        self.period, self.count = max(int(0.04 * steps), 1), 0

    def check(self, state: _Ascent, *, first: bool) -> None:
        """Adapt sparsity and length every few steps."""
        self.count += not first
        if self.count < self.period:
            return
        self.count, changed = 0, self._changed(state)
        fell = changed < 0.95 * self.changed
        self.length = torch.where(fell, self.first, self.length / 1.5).clamp(self.first / 10, self.first)
        self.share, self.changed = changed / self.inputs / 1.5, changed
        state.back(fell)

    def step(self, state: _Ascent) -> Tensor:
        """Return where a step would lead, in the region or not."""
        ball, size = state.region.ball, state.gradient.abs().flatten(1)
        at = ((1 - self.share) * self.inputs).clamp(0, self.inputs - 1).long()
        least = size.sort(dim=1).values.gather(1, at[:, None])
        chosen = torch.where((size >= least).view_as(state.gradient), state.gradient, 0.0).sign()
        length = self.length * ball.eps / chosen.abs().flatten(1).sum(dim=1).clamp_min(1.0)
        return state.point + chosen * per_sample(length, chosen) * ball.unit()

    def take(self, keep: Tensor) -> None:
        """Keep these samples."""
        self.length, self.changed, self.share = self.length[keep], self.changed[keep], self.share[keep]

    @staticmethod
    def _changed(state: _Ascent) -> Tensor:
        return (state.best != state.region.x).flatten(1).sum(dim=1).to(state.losses)


def _sparse_start(region: Region, ids: Tensor, seed: int, purpose: str) -> Tensor:
    """Return random points of an L1 ball that differ from the samples in few inputs: normal noise, projected.

    So the authors' code starts; about one input in 13 stays. From points uniform in the ball, which differ in all inputs, the
    steps become sparse too late.
    """
    inputs = max(region.x[0].numel(), 1) if len(region.x) else 1
    noise = normal_noise(ids, tuple(region.x.shape[1:]), seed=seed, purpose=purpose).to(region.x)
    return region.project(region.x + noise * (NOISE * region.ball.eps / inputs) * region.ball.unit())


def _write(found: Candidates, rows: Tensor, seen: Ascended) -> None:
    """Note in `found` what an ascent of the samples at `rows` found."""
    first = found.loss_start[rows]
    found.loss_start[rows] = torch.where(first.isnan(), seen.loss_start, first)
    found.note(rows, seen.point, seen.loss_end, seen.broken, last=True)
    found.grad_zero[rows] &= seen.zero
    found.grad_nan[rows] |= seen.nan
