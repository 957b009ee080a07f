"""An attack that tests the evaluation in L2: long runs inside the ball, and then runs that begin far outside it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from audit.attacks.base import Candidates
from audit.attacks.geometry import Ball, Norm
from audit.attacks.goal import Goal
from audit.attacks.pgd import PGD
from audit.evaluations.adaptive import WIDE, WIDE_STEP, Climb, far_away, wider
from audit.model.wrapper import Model

AFAR_STEPS, AFAR_RUNS = 40, 2


class Afar(PGD):
    """PGD, and on what it leaves standing runs that close in on the ball as those of `adaptive.Wide` do.

    Where a network ignores small changes of an input no path inside the ball leads to an example, however long it is. On a
    network that was trained against L∞ changes (MNIST, L2 1.5, 100 images) the profile ``quick`` left 59 standing; two runs of
    100 steps inside the ball broke 1 of them, two of 40 from afar 8, and ``thorough`` 20.
    """

    name = "afar"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:
        """Attack a batch; see `Attack.run`."""
        found = super().run(model, x, goal, ball, ids)
        for number in range(AFAR_RUNS):
            rows = (~found.broken).nonzero()[:, 0]
            if len(rows) == 0:
                break
            region, purpose, kept = ball.around(x[rows]), f"{self.name}.{number}", ids[rows]
            climb = Climb(model, x[rows], region, goal.take(rows), kept, purpose, self.seed)
            start = far_away(wider(region, WIDE), kept, seed=self.seed, purpose=purpose)
            direction = -1.0 if goal.task == "regression" and number % 2 else 1.0
            climb.run(start, AFAR_STEPS, WIDE_STEP, kind="margin", direction=direction, radius=WIDE)
            found.note(rows, climb.point, climb.margin, climb.broken)
            found.grad_zero[rows] &= climb.zero
            found.grad_nan[rows] |= climb.nan
        return found
