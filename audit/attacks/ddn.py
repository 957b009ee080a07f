"""Decoupled direction and norm (Rony et al. 2019) for L2, and then a walk along the boundary that it found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.attacks.base import Candidates, MinimumNormAttack
from audit.attacks.boundary import Search, Sight, runs_of
from audit.attacks.geometry import Ball, Norm, l2_norm, per_sample
from audit.attacks.goal import Goal
from audit.attacks.steps import unit_l2
from audit.errors import UsageError
from audit.model.wrapper import Model

GAMMA = 0.05  # Rony et al. 2019, section 4
LAST_STEP = 0.01  # of the first
WALK = 0.3  # share of the steps


class DDN(MinimumNormAttack):
    """Decoupled direction and norm, for L2.

    Rony et al. 2019, "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses",
    algorithm 1: a step along the gradient, and back onto a sphere whose radius shrinks by 5 % where the sample is broken
    and grows by 5 % where it is not. Steps are in units of the radius rather than of the box, the first radius is the distance
    of the boundary as the first gradient has it rather than 1, and the loss is the margin: tables have columns of any width.

    Parameters
    ----------
    eps, seed
        See `MinimumNormAttack`.
    steps
        Looks at the network a sample, one forward and one backward each.
    gamma
        By how much the radius changes in a step.
    walk
        Share of the steps at the end that walk along the boundary; see `Search.walk`.
    """

    name = "ddn"
    norms = ("l2",)

    def __init__(
        self,
        norm: Norm = "l2",
        eps: float | None = None,
        *,
        steps: int = 100,
        gamma: float = GAMMA,
        walk: float = WALK,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, eps, seed=seed)
        if steps < 1 or not 0 <= walk < 1 or not 0 < gamma < 1:
            raise UsageError(f"steps must be at least 1, gamma in (0, 1), walk in [0, 1), got {steps}, {gamma} and {walk}")
        self.steps, self.gamma, self.walk = steps, gamma, walk

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        search = Search(model, x, goal, ball, ids, seed=self.seed, purpose=self.name)
        for run in runs_of(goal, self.steps, 1):
            search.begin(run)
            walk = int(self.walk * run.steps)
            search.walk(walk, self._search(search, run.steps - walk))
        return search.found

    def _search(self, search: Search, steps: int) -> Sight:
        seen = search.see(torch.zeros_like(search.low))
        radius = (seen.excess.abs() / l2_norm(seen.gradient).clamp_min(1e-30)).minimum(l2_norm(search.high - search.low))
        for k in range(1, steps):
            length = radius * max((1 + math.cos(math.pi * k / steps)) / 2, LAST_STEP)
            u = (seen.u + unit_l2(seen.gradient) * per_sample(length, seen.u)).maximum(search.low).minimum(search.high)
            u = u * per_sample(radius / l2_norm(u).clamp_min(1e-30), u)
            seen = search.see(u)
            radius = radius * torch.where(seen.hit, 1 - self.gamma, 1 + self.gamma)
        return seen
