"""Random noise in the ball, the attack that every other one has to beat: no gradient, only draws."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.base import Attack, Ball, Candidates, Goal, Norm, output_of, random_in_ball
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

    def __init__(self, norm: Norm = "linf", eps: float = 8 / 255, *, draws: int = 10, seed: int = 0) -> None:
        super().__init__(norm, eps, seed=seed)
        self.draws = draws

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        found = Candidates.start(x)
        found.grad_zero.fill_(False)
        low, high = ball.limits(x)
        rows = torch.arange(len(x), device=x.device)
        for draw in range(self.draws):
            noise = random_in_ball(
                ids[rows], tuple(x.shape[1:]), ball, seed=self.seed, purpose=f"{self.name}.{self.norm}", draw=draw
            ).to(x)
            point = torch.minimum(torch.maximum(x[rows] + noise * ball.unit(), low[rows]), high[rows])
            output = output_of(model, point)
            margins = goal.take(rows).loss(output, kind="margin")
            if draw == 0:
                found.loss_start[rows] = margins
            found.note(rows, point, margins, goal.take(rows).broken(output))
            rows = (~found.broken).nonzero()[:, 0]
            if len(rows) == 0:
                break
        return found
