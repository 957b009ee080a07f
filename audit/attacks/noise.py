"""Random noise in the ball, the attack that every other one has to beat: no gradient, only draws."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.base import Attack, Candidates, output_of
from audit.attacks.geometry import NORMS, Ball, Norm
from audit.attacks.goal import Goal
from audit.model.wrapper import Model


class UniformNoise(Attack):
    """Draw points uniform in the ball and keep the first one that breaks its sample.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`.
    draws
        Points a sample.
    """

    name = "noise"
    norms = NORMS

    def __init__(self, norm: Norm = "linf", eps: float = 8 / 255, *, draws: int = 10, seed: int = 0) -> None:
        super().__init__(norm, eps, seed=seed)
        self.draws = draws

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        found = Candidates.start(x)
        found.grad_zero.fill_(False)
        rows = torch.arange(len(x), device=x.device)
        for draw in range(self.draws):
            region = ball.around(x[rows])
            point = region.random(ids[rows], seed=self.seed, purpose=f"{self.name}.{self.norm}", draw=draw)
            output = output_of(model, point)
            margins = goal.take(rows).loss(output, kind="margin")
            if draw == 0:
                found.loss_start[rows] = margins
            found.note(rows, point, margins, goal.take(rows).broken(output))
            rows = (~found.broken).nonzero()[:, 0]
            if len(rows) == 0:
                break
        return found
