"""The fast gradient method (Goodfellow et al. 2015): one step along the gradient, for L∞ and L2."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.base import Attack, Candidates, output_of
from audit.attacks.geometry import Ball
from audit.attacks.goal import Goal
from audit.attacks.steps import largest_entry, step
from audit.model.wrapper import Model


class FGSM(Attack):
    r"""One step to the edge of the ball, where the loss grows fastest if the network is linear.

    Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", section 4: :math:`x + \\epsilon\\,
    \\operatorname{sign} \\nabla_x J`. The L2 analogue steps along the gradient scaled to length eps. For regression, where
    the output may move either way, both directions are tried. One backward a sample: cheap, and far weaker than PGD, which is
    what it is good for: to show what a weak attack would have said.

    Parameters
    ----------
    norm, eps, seed
        See `Attack`; it draws nothing, so that the seed changes nothing.
    """

    name = "fgsm"

    def run(self, model: Model, x: Tensor, goal: Goal, ball: Ball, ids: Tensor) -> Candidates:  # noqa: ARG002  (no noise)
        """Attack a batch; see `Attack.run`."""
        found = Candidates.start(x)

        def loss(output: Tensor) -> Tensor:
            found.loss_start.copy_(goal.loss(output.detach(), kind="margin"))
            return goal.loss(output)

        gradient, _ = model.gradient(loss, x)
        largest = largest_entry(gradient)
        found.grad_zero.copy_(largest == 0)
        found.grad_nan.copy_(~torch.isfinite(largest))
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        region = ball.around(x)
        rows = torch.arange(len(x), device=x.device)
        for direction in (1.0, -1.0) if goal.task == "regression" else (1.0,):
            point = step(x, gradient * direction, region, ball.eps * ball.unit())
            output = output_of(model, point)
            found.note(rows, point, goal.loss(output, direction, "margin"), goal.broken(output), last=direction > 0)
        return found
