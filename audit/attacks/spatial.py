"""Spatial attack (Engstrom et al. 2019): images rotated and shifted a little, over a grid or by some random draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.given import ids_of, samples_of, tolerance_of
from audit.attacks.goal import Goal
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.batching import in_batches
from audit.model.wrapper import Model


@dataclass(frozen=True)
class SpatialOutput:
    """What rotations and shifts did; every success was confirmed by a fresh forward.

    Attributes
    ----------
    x_adv : Tensor like x
        The image that broke, else the clean one.
    success : bool Tensor (n,)
        Wrong already, or made wrong.
    angle, down, right : Tensor (n,)
        Degrees, and shifts in pixels, of the transformation that broke the image; NaN where none did.
    rejected : bool Tensor (n,)
        Seen broken, and not confirmed: the network's output is random or depends on the batch.
    """

    x_adv: Tensor
    success: Tensor
    angle: Tensor
    down: Tensor
    right: Tensor
    rejected: Tensor
    forwards: int


class Spatial:
    """Rotations and translations of images, until one is answered wrongly.

    Engstrom et al. 2019, "Exploring the Landscape of Spatial Robustness", section 3: rotation by up to 30 degrees and shifts
    by up to a tenth of the side, over a grid of 31 × 5 × 5, or the worst of k random draws (`worst_of`; in the paper 10).
    Gradients do not help there (their section 4.2), so none are used. Interpolation is bilinear; what comes in from outside
    has the lowest value of the box, as their black. The largest changes are tried first, and a broken image leaves.

    Its threat model is angles and pixels, no ball: there is no distance to compare with others.

    Parameters
    ----------
    max_angle
        Degrees, either way.
    max_shift
        Share of the height and of the width, either way.
    angles, shifts
        Points of the grid along the angle and along each shift.
    worst_of
        Random transformations an image in place of the grid.
    black
        Value of what comes in from outside, broadcastable to one image; the lowest of the model's bounds where None.
    seed
        Seed of these; they belong to sample ids.
    """

    name = "spatial"

    def __init__(
        self,
        *,
        max_angle: float = 30.0,
        max_shift: float = 0.1,
        angles: int = 31,
        shifts: int = 5,
        worst_of: int | None = None,
        black: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= max_angle <= 180 or not 0 <= max_shift <= 1:
            raise UsageError(f"max_angle must lie in 0 to 180 and max_shift in 0 to 1, got {max_angle:g} and {max_shift:g}")
        if angles < 1 or shifts < 1 or (worst_of is not None and worst_of < 1):
            raise UsageError(f"angles, shifts and worst_of must be at least 1, got {angles}, {shifts} and {worst_of}")
        self.max_angle, self.max_shift, self.seed = max_angle, max_shift, seed
        self.angles, self.shifts, self.worst_of, self.black = angles, shifts, worst_of, black

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, *, ids: Tensor | None = None, tolerance: float | None = None
    ) -> SpatialOutput:
        """Transform images until they break; see `Attack.__call__` for the parameters.

        Raises
        ------
        UsageError
            The inputs are no images, (n, channels, height, width).
        """
        inputs, labels = samples_of(model, x, y)
        if inputs.ndim != 4:
            raise UsageError(f"spatial is for images of shape (n, channels, height, width), got {tuple(inputs.shape)}")
        if model.bounds is None and self.black is None:
            raise UsageError("spatial needs to know which value is black: Model(…, bounds=(0, 1))")
        sample_ids, moved = ids_of(ids, len(inputs)), tolerance_of(model, tolerance)
        forwards = model.forwards

        def attack(xs: Tensor, ys: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
            return self._batch(model, xs, Goal(model.task or "", ys, moved or 0.0), batch_ids)

        with model.session():
            out = in_batches(
                attack, (inputs, labels if model.task == "regression" else labels.long(), sample_ids), model.batch_size
            )
        x_adv, success, moves, rejected = out
        angle, down, right = moves.unbind(dim=1)
        return SpatialOutput(x_adv, success, angle, down, right, rejected, model.forwards - forwards)

    def _batch(self, model: Model, x: Tensor, goal: Goal, ids: Tensor) -> tuple[Tensor, ...]:
        clean = output_of(model, x)
        if goal.task == "regression":
            goal = Goal(goal.task, clean, goal.tolerance)
        success = goal.broken(clean)
        x_adv = x.clone()
        moves = torch.full((len(x), 3), torch.nan, dtype=x.dtype, device=x.device)
        rows = (~success).nonzero()[:, 0]
        tried = self._moves(x, ids.to(x.device))
        lowest = model.bounds[0] if model.bounds else 0.0
        black = torch.as_tensor(np.asarray(lowest if self.black is None else self.black)).to(x)
        for k in range(tried.shape[1]):
            if len(rows) == 0:
                break
            move = tried[:, k].expand(len(x), 3)[rows]
            point = transformed(x[rows], move, black)
            hit = goal.take(rows).broken(output_of(model, point))
            x_adv[rows[hit]], moves[rows[hit]] = point[hit], move[hit]
            rows = rows[~hit]
        claimed = (~moves[:, 0].isnan()).nonzero()[:, 0]
        rejected = torch.zeros_like(success)
        if len(claimed):
            sure = goal.take(claimed).broken(output_of(model, x_adv[claimed]))
            success[claimed], rejected[claimed] = sure, ~sure
            x_adv[claimed[~sure]], moves[claimed[~sure]] = x[claimed[~sure]], torch.nan
        return x_adv, success, moves, rejected

    def _moves(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return angle, shift down and shift right of each trial, (n or 1, trials, 3), the largest first."""
        most = torch.tensor([self.max_angle, self.max_shift * x.shape[2], self.max_shift * x.shape[3]]).to(x)
        if self.worst_of is not None:
            bits = hashed_bits(ids, 3 * self.worst_of, seed=self.seed, purpose=self.name).view(len(ids), -1, 3)
            return (bits.to(x.dtype) / 2**31 - 1).clamp(-1, 1) * most
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (self.angles, self.shifts, self.shifts)]
        grid = torch.cartesian_prod(*axes).to(x)
        return (grid[grid.square().sum(dim=1).argsort(descending=True, stable=True)] * most)[None]


def transformed(x: Tensor, moves: Tensor, black: Tensor | float = 0.0) -> Tensor:
    """Rotate images about their centres, then shift them, with bilinear interpolation.

    Parameters
    ----------
    x : Tensor (n, channels, height, width)
    moves : Tensor (n, 3)
        Degrees against the clock, pixels down, pixels right.
    black
        Value of what comes in from outside, broadcastable to one image.
    """
    height, width = x.shape[2:]
    angle, down, right = (moves[:, 0] * math.pi / 180), moves[:, 1] * 2 / height, moves[:, 2] * 2 / width
    cos, sin = angle.cos(), angle.sin()
    # Where each pixel comes from, in coordinates from -1 to 1: shifted back, then turned back.
    across, along = -sin * height / width, sin * width / height
    theta = torch.stack(
        (
            torch.stack((cos, across, -cos * right - across * down), dim=1),
            torch.stack((along, cos, -along * right - cos * down), dim=1),
        ),
        dim=1,
    )
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(x - black, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved + black
