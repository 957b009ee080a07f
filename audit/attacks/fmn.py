"""Fast minimum norm (Pintor et al. 2021) for L∞, L2, L1 and L0, and then a walk along the boundary that it found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack
from audit.attacks.boundary import ENDLESS, Search, Sight, dual_norm, runs_of, within
from audit.attacks.geometry import Ball, Norm, per_sample, size_of
from audit.attacks.goal import Goal
from audit.attacks.steps import unit_l2
from audit.errors import UsageError
from audit.model.wrapper import Model

GAMMA = (0.05, 0.001)  # by how much the radius changes in the first and in the last step (Pintor et al. 2021, section 3)
GAMMA_FAR = 0.3  # from a random place of the box, the ball has a long way to shrink; 0.15 and 0.5 did no better
LAST_STEP = 0.01  # of the first
BOLD = {"linf": 1.0, "l2": 3.0, "l1": 3.0, "l0": 3.0}  # times the step, until a sample is broken
WALK = 0.3  # share of the steps: 0.3 to 0.5 did better than none in L2, L1 and L0; in L∞ 0.1 to 0.4 did equally well
# How far off random places are, of the box's width: half did worse in L1, all in L2; in L∞ a third to all did equally well.
FAR = {"linf": 0.5, "l2": 0.5, "l1": 1.0, "l0": 1.0}
WALK_FAR = {"linf": 1.0, "l2": 5 / 3, "l1": 1.0, "l0": 1.0}  # how much longer the walk is of a run that begins there
TARGETS = {"linf": 3, "l2": 3, "l1": 1, "l0": 1}  # 3 did better in L∞ and L2, and not in the other norms
# Steps of a run from a random place. In L∞ all are as long as the first; in L2, 10 steps did worse, as did 50 in L1 and L2.
RUN = {"linf": 50, "l2": 25, "l1": 30, "l0": 30}
# Share of all steps that the first run has at least: but for adversarially trained networks, it is the one that counts.
LEAD = 0.2


class FMN(MinimumNormAttack):
    """Fast minimum norm.

    Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", algorithm 1: a step along
    the gradient, and back into a ball that shrinks where the sample is broken and grows where it is not; until it was broken
    once, the ball reaches to the boundary as the gradient has it.

    Five things are other than in the paper. Steps in L∞ go along the sign of the gradient, and steps in L∞ and L2 are in units
    of the ball's radius. A sample that was not broken yet takes steps three times as long (but in L∞). The last steps walk
    along the boundary (`Search.walk`). In L∞ and L2 the first run has a target. A long attack begins again far away rather than
    take shorter steps, and approaches in L2 (in L∞ in its own norm, in a ball no larger than the closest example so far): from
    the input, the gradient of an adversarially trained network leads to examples that are not the closest.

    Parameters
    ----------
    norm, eps, seed
        See `MinimumNormAttack`.
    steps
        Looks at the network a sample, one forward and one backward each, over all runs.
    restarts
        Runs of equal length, the first from the input, the others from random points anywhere in the box (in L∞ and L2 half of
        the way there). Where None, in L∞ one for each 50 steps; in L2 a first run of 25 steps or a fifth of all, whichever is
        more, and then runs of about 25; in L1 and L0 a first run of 20 steps and a fifth of all, and then runs of about 30.
    targets
        Classes whose boundaries are compared at the input, one look each (at most a tenth of the run's steps), for the first
        run to go to the nearest; no comparison where 1. Where None, 3 in L∞ and L2, 1 in other norms.
    walk
        Share of the steps at the end of each run that walk along the boundary; more from random points in L2.
    first
        Number of the first run: from 1 on (for regression from 2 on) none begins at the input, as another attack's may have.
    """

    name = "fmn"
    norms = ("linf", "l2", "l1", "l0")

    def __init__(
        self,
        norm: Norm = "l2",
        eps: float | None = None,
        *,
        steps: int = 100,
        restarts: int | None = None,
        targets: int | None = None,
        walk: float = WALK,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or not 0 <= walk < 1:
            raise UsageError(f"steps must be at least 1 and walk in [0, 1), got {steps} and {walk}")
        if restarts is not None and not 1 <= restarts <= steps:
            raise UsageError(f"restarts must be between 1 and the number of steps ({steps}), got {restarts}")
        self.steps, self.walk, self.first = steps, walk, first
        self.targets = TARGETS[norm] if targets is None else targets
        self.lead = default_lead(norm, steps) if restarts is None else 0
        self.restarts = default_restarts(norm, steps - self.lead) if restarts is None else restarts

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        search = Search(model, x, goal, ball, ids, seed=self.seed, purpose=self.name)
        runs = runs_of(goal, self.steps, self.restarts, self.first, self.lead)
        for run in runs:
            search.begin(run)
            search.goal = goal
            if run.random:
                start = FAR[ball.norm] * search.anywhere(run.number)
                walk = min(int(WALK_FAR[ball.norm] * self.walk * run.steps), run.steps - 1)
                approach: Norm = "linf" if ball.norm == "linf" else "l2"
                search.walk(walk, self._search(search, approach, start, run.steps - walk, GAMMA_FAR), far=True)
                continue
            steps = run.steps - (0 if run.number else search.aim(min(self.targets, run.steps // 10)))
            walk = int(self.walk * steps)
            # In L∞ the short steps of a far run come closer here, too; far runs follow for the samples that they leave behind.
            seen = self._search(search, ball.norm, torch.zeros_like(x), steps - walk, GAMMA[0])
            search.walk(walk, seen, far=ball.norm == "linf" and runs[-1].random)
        return search.found

    def _search(self, search: Search, norm: Norm, start: Tensor, steps: int, fastest: float) -> Sight:
        """Run in balls of `norm`, which change by `fastest` in the first step, and return the last look."""
        u, width = start, search.width
        most = size_of(search.high.maximum(-search.low).clamp_max(ENDLESS), norm)
        radius, best = (torch.full_like(width, torch.inf) for _ in range(2))
        known = torch.zeros_like(search.best.hit)  # in this run
        if norm == search.norm and (norm == "linf" or fastest == GAMMA[0]):
            # From far away, but for L∞, a ball as small as the closest example of all leaves no room to come down elsewhere.
            best = search.best.size
        for k in range(steps):
            seen = search.see(u)
            if k == steps - 1:
                break
            known = known | seen.hit
            size = size_of(seen.u, norm)
            best = torch.where(seen.hit, best.minimum(size), best)
            share = (1 + math.cos(math.pi * k / steps)) / 2
            gamma = GAMMA[1] + (fastest - GAMMA[1]) * share
            if norm == "l0":
                radius = _fewest(seen.hit, size, best, radius, gamma)
            else:
                reach = size + seen.excess.abs() / dual_norm(seen.gradient, norm).clamp_min(1e-30)
                inner = torch.minimum(radius * (1 - gamma), best)
                radius = torch.where(seen.hit, inner, torch.where(known, radius * (1 + gamma), reach))
            radius = radius.minimum(most)
            length = max(share, LAST_STEP) * (radius if norm in ("linf", "l2") else width)
            length = torch.where(known, length, BOLD[norm] * length)
            towards = seen.gradient.sign() if norm == "linf" else unit_l2(seen.gradient)
            u = (seen.u + towards * per_sample(length, u)).maximum(search.low).minimum(search.high)
            u = within(u, norm, radius)
        return seen


def default_lead(norm: Norm, steps: int) -> int:
    """Return the steps of the first run (L∞: 0, all runs are equally long)."""
    if norm == "linf":
        return 0
    share = LEAD * steps
    return min(steps, int(max(RUN["l2"], share) if norm == "l2" else 20 + share))


def default_restarts(norm: Norm, steps: int) -> int:
    """Return the number of runs among which to divide the steps that the first run leaves (L∞: all steps)."""
    return max(1, steps // RUN[norm]) if norm == "linf" else 1 + round(steps / RUN[norm])


def _fewest(hit: Tensor, size: Tensor, best: Tensor, radius: Tensor, gamma: float) -> Tensor:
    """Change the number of inputs by at least one."""
    radius = torch.where(radius.isinf(), size, radius)
    down = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
    up = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(hit, torch.minimum(down, best), up).clamp_min(1.0)
