"""σ-zero (Cinà et al. 2024): the fewest inputs to change, by a smooth stand-in for their number; then a walk to be closest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack
from audit.attacks.boundary import Search, Sight, runs_of
from audit.attacks.geometry import Ball, Norm, per_sample, size_of
from audit.attacks.goal import Goal
from audit.errors import UsageError
from audit.model.wrapper import Model

SIGMA = 1e-3  # Cinà et al. 2024, section 3.1
RATE = (1.0, 0.1)  # first and last length of a step, of the box's width
THRESHOLD = 0.3  # first threshold below which a change is taken back, of the box's width
THRESHOLD_RATE = 0.01  # by how much it moves in a step, of the step's length
BETAS = (0.9, 0.999)  # of Adam
WALK = 0.3  # share of the steps


class SigmaZero(MinimumNormAttack):
    r"""σ-zero, for L0.

    Cinà et al. 2024, "σ-zero: Gradient-based Optimization of ℓ0-norm Adversarial Examples", algorithm 1: Adam's steps down
    the margin, where it is not yet beyond the boundary, and :math:`\sum_i u_i^2 / (u_i^2 + \sigma)` over the number of inputs;
    then changes below a threshold, which rises while the sample is broken and falls while it is not, are taken back. The
    gradient of the margin is brought to a largest entry of 1 first, so that the scale of the logits does not matter.

    Parameters
    ----------
    eps, seed
        See `MinimumNormAttack`.
    steps
        Looks at the network a sample, one forward and one backward each.
    walk
        Share of the steps at the end of each run that walk along the boundary; see `Search.walk`.
    restarts
        Runs among which the steps are divided: the first from the input, as in the paper, the others from random points of the
        box (`Search.anywhere`), which the paper does not do.
    first
        Number of the first run: from 1 on (for regression from 2 on) none begins at the input, as another attack's may have.
    """

    name = "sigma_zero"
    norms = ("l0", "l1")

    def __init__(
        self,
        norm: Norm = "l0",
        eps: float | None = None,
        *,
        steps: int = 100,
        walk: float = WALK,
        restarts: int = 1,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or not 0 <= walk < 1:
            raise UsageError(f"steps must be at least 1 and walk in [0, 1), got {steps} and {walk}")
        if restarts < 1:
            raise UsageError(f"restarts must be at least 1, got {restarts}")
        self.steps, self.walk, self.restarts, self.first = steps, walk, restarts, first

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        search = Search(model, x, goal, ball, ids, seed=self.seed, purpose=self.name)
        for run in runs_of(goal, self.steps, self.restarts, self.first):
            search.begin(run)
            walk = int(self.walk * run.steps)
            start = search.anywhere(run.number) if run.random else torch.zeros_like(search.low)
            search.walk(walk, self._search(search, start, run.steps - walk))
        return search.found

    def _search(self, search: Search, start: Tensor, steps: int) -> Sight:
        width = per_sample(search.width, search.low)
        u = start
        first, second = torch.zeros_like(u), torch.zeros_like(u)
        threshold = torch.full_like(search.width, THRESHOLD)
        for k in range(steps):
            seen = search.see(u)
            if k == steps - 1:
                break
            rate = RATE[1] + (RATE[0] - RATE[1]) * (1 + math.cos(math.pi * k / steps)) / 2
            gradient = self._descent(seen, width)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
            mean, spread = first / (1 - BETAS[0] ** (k + 1)), second / (1 - BETAS[1] ** (k + 1))
            u = seen.u - rate * width * mean / (spread.sqrt() + 1e-8)
            threshold = (threshold + torch.where(seen.hit, rate, -rate) * THRESHOLD_RATE).clamp(0.0, 1.0)
            u = u.maximum(search.low).minimum(search.high)
            u = torch.where(u.abs() < per_sample(threshold, u) * width, torch.zeros_like(u), u)
        return seen

    def _descent(self, seen: Sight, width: Tensor) -> Tensor:
        v = seen.u / width
        few = 2 * v * SIGMA / (v.square() + SIGMA).square() / v[0].numel()
        margin = seen.gradient / per_sample(size_of(seen.gradient, "linf").clamp_min(1e-30), v)
        total = few - torch.where(per_sample(seen.hit, v), torch.zeros_like(v), margin)
        return total / per_sample(size_of(total, "linf").clamp_min(1e-30), v)
