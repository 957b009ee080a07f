"""The fast gradient method (Goodfellow et al. 2015): one step along the gradient, for L∞ and L2."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attacks.base import Attack, Ball, Candidates, Goal, l2_norm, output_of, per_sample
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
        largest = torch.linalg.vector_norm(gradient.flatten(1), ord=torch.inf, dim=1)
        found.grad_zero.copy_(largest == 0)
        found.grad_nan.copy_(~torch.isfinite(largest))
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        low, high = ball.limits(x)
        rows = torch.arange(len(x), device=x.device)
        for direction in (1.0, -1.0) if goal.task == "regression" else (1.0,):
            point = torch.minimum(torch.maximum(x + _step(gradient * direction, ball), low), high)
            output = output_of(model, point)
            found.note(rows, point, goal.loss(output, direction, "margin"), goal.broken(output), last=direction > 0)
        return found


def _step(gradient: Tensor, ball: Ball) -> Tensor:
    """Return the step of length eps, in input units, along which a linear loss would grow most."""
    if ball.norm == "linf":
        return gradient.sign() * ball.eps * ball.unit()
    # In units of the radius the ball is round; the largest entry is divided out first, so that nothing underflows.
    steepest = gradient * ball.unit()
    largest = torch.linalg.vector_norm(steepest.flatten(1), ord=torch.inf, dim=1)
    steepest = steepest / per_sample(largest.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
    return steepest / per_sample(l2_norm(steepest).clamp_min(1e-12), gradient) * ball.eps * ball.unit()
