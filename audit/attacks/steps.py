"""What attacks that follow a gradient share: one look at it, one step along it, its direction whatever its size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audit.attacks.geometry import Region, l2_norm, per_sample
from audit.attacks.goal import Goal, LossName
from audit.model.wrapper import Model


def look(model: Model, goal: Goal, point: Tensor, direction: float, kind: LossName) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss's gradient, the margins, and which samples are broken at `point`: one forward and one backward."""
    gradient, _, output = observe(model, point, lambda logits: goal.loss(logits, direction, kind))
    return gradient, goal.margin(output, direction), goal.broken(output)


def observe(model: Model, point: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss's gradient, (n, …), its values, (n,), and the output: one forward and one backward."""
    output = point

    def seen(logits: Tensor) -> Tensor:
        nonlocal output
        output = logits.detach()
        return loss(logits)

    gradient, losses = model.gradient(seen, point)
    return gradient, losses, output


def step(point: Tensor, gradient: Tensor, region: Region, length: Tensor | float) -> Tensor:
    """Go a step up the gradient, by its sign (L∞) or its direction (other norms), and back into the region."""
    # In units of the radius the ball is round: the gradient is taken there, and the step brought back.
    move = region.signs(gradient) if region.ball.norm == "linf" else unit_l2(region.slopes(gradient))
    # Both are tensors of their own: in place, for a new one of this size costs more than the arithmetic.
    return region.follow(move.mul_(length).add_(point))


def largest_entry(gradient: Tensor) -> Tensor:
    """Return the largest absolute entry of each sample, (n,); NaN where there is one."""
    largest: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=torch.inf, dim=1)
    return largest


def unit_l2(gradient: Tensor) -> Tensor:
    """Scale each sample's gradient to length 1; zero stays zero.

    It is divided by its largest entry first, so that a gradient of 1e-30 does not underflow in its own norm.
    """
    largest = largest_entry(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    scaled = gradient / per_sample(largest, gradient)
    return scaled.div_(per_sample(l2_norm(scaled).clamp_min(1e-12), scaled))
