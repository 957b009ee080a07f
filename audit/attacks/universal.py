"""Universal perturbation (Moosavi-Dezfooli et al. 2017): one change that fools the network on most inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.attacks.fitted import FittedAttack
from audit.attacks.geometry import Norm, ThreatModel, l2_norm, per_sample
from audit.attacks.goal import Goal
from audit.attacks.steps import look
from audit.errors import UsageError
from audit.model.wrapper import Model

BATCH = 64
FIRST_STEP = 0.3  # of the radius


class Universal(FittedAttack):
    """One perturbation of all inputs, by stochastic projected gradient ascent.

    Moosavi-Dezfooli, Fawzi, Fawzi & Frossard 2017, "Universal Adversarial Perturbations", for the question; Shafahi et al.
    2020, "Universal Adversarial Training", algorithm 2, for the answer: minibatch gradients, a step by sign (L∞) or direction
    (L2), a projection onto the radius. In place of their clipped loss, a sample that is broken already adds nothing.
    Steps shrink along half a cosine.

    Parameters
    ----------
    threat
        Norm, radius and box; L∞ or L2. A column that must not change stays, and an input at the box's edge is clipped there.
    steps
        Gradient steps, each of 64 samples; for regression half of them up and half down, and the better one is taken.
    seed
        See `FittedAttack`.
    """

    name = "universal"
    norms: tuple[Norm, ...] = ("linf", "l2")

    def __init__(self, threat: ThreatModel, *, steps: int = 200, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if threat.norm not in self.norms:
            raise UsageError(f"universal is for {', '.join(self.norms)}, got {threat.norm!r}")
        if steps < 2:
            raise UsageError(f"steps must be at least 2, got {steps}")
        self.threat, self.steps = threat, steps

    def fit(self, model: Model, x: Tensor, goal: Goal, ids: Tensor) -> Tensor:  # noqa: ARG002
        """Return the perturbation, shaped as one sample."""
        self.threat.check(tuple(x.shape[1:]))
        if goal.task != "regression":
            return self._climb(model, x, goal, 1.0, self.steps)[0]
        up, down = (self._climb(model, x, goal, direction, self.steps // 2) for direction in (1.0, -1.0))
        return up[0] if up[1] >= down[1] else down[0]

    def apply(self, x: Tensor, change: Tensor, ids: Tensor) -> Tensor:  # noqa: ARG002
        """Return the samples with the perturbation, inside the box and the radius."""
        return self.threat.on(x).around(x).project(x + change)

    def _climb(self, model: Model, x: Tensor, goal: Goal, direction: float, steps: int) -> tuple[Tensor, int]:
        """Return the perturbation, and how many samples it broke in the last epoch."""
        ball = self.threat.on(x)
        unit, change = ball.unit(), torch.zeros_like(x[0])
        hits: list[Tensor] = []
        for k, batch in enumerate(self.batches(len(x), BATCH, steps)):
            rows = batch.to(x.device)
            gradient, _, hit = look(model, goal.take(rows), self.apply(x[rows], change, rows), direction, "ce")
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * per_sample(~hit, x[rows])
            hits.append(hit.sum())
            total = gradient.sum(dim=0)
            length = FIRST_STEP * ball.eps * (1 + math.cos(math.pi * k / steps)) / 2
            if ball.norm == "linf":
                scaled = ball.scaled(change) + length * total.sign()
                change = scaled.clamp(-ball.eps, ball.eps) * unit
                continue
            total = total * unit
            total = total / total.abs().max().clamp_min(torch.finfo(total.dtype).tiny)
            moved = ball.scaled(change) + length * total / l2_norm(total[None]).clamp_min(1e-12)
            change = moved * (ball.eps / l2_norm(moved[None]).clamp_min(1e-12)).clamp_max(1.0) * unit
        epoch = max(1, len(x) // BATCH)
        return change, int(torch.stack(hits[-epoch:]).sum())
