"""Whether outputs jump beside a point: a network that tells attacks from data answers the two by different rules.

Stored data lie on a grid, whole 255ths say, and what attacks try lies off it, or at the corners of the ball. A network that
looks for that can answer every attack as one that is robust, gradient and all, and still be as brittle as before to whoever
rounds an example to the grid. No test of its gradient shows that, for each of its two sides is honest; the step between does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.attacks.base import output_of
from audit.attacks.geometry import Ball, Norm, Region, ThreatModel
from audit.attacks.goal import as_columns
from audit.data.noise import uniform_noise
from audit.model.batching import in_batches
from audit.model.wrapper import Model
from audit.result import Evidence

Floats = NDArray[np.floating[Any]]

DRAWS = 4
BESIDE = 0.02  # how far beside a point is looked, in units of what the radius moves each input
MOST_LEVELS = 1024  # more different values than that are no grid
MOST_AXES = 512  # channels or columns that may have a grid each; beyond, all have one
STILL = 1e-4  # standard deviations of an output: smaller moves are none
# Smooth networks had 0.01 to 0.04 on all samples, one of inputs rounded as coarsely as the data 0.15, one of activations of six
# bits 0.7 at most; the step between two networks is 0.9 and more.
JUMP, JUMPING = 0.75, 0.1  # share of the radius' own move that counts as a jump, and share of samples that may have one


def levels(x: NDArray[np.generic]) -> list[Floats] | None:
    """Return the values that data of shape (n, channels or columns, …) take, by channel; None where that is no grid."""
    parts = [x[:, i] for i in range(x.shape[1])] if x.ndim > 1 and x.shape[1] <= MOST_AXES else [x]
    found: list[Floats] = [np.unique(part).astype(np.float64) for part in parts]
    return found if all(len(each) <= MOST_LEVELS for each in found) else None


def jumps(
    model: Model, x: Tensor, ids: Tensor, threat: ThreatModel, grid: list[Floats] | None, spread: Floats, *, seed: int
) -> Tensor:
    """Return the largest change of the outputs a hair beside a point, as a share of what the radius changes, (n,).

    The points are the sample, random points and corners of the ball, and both of these brought to the grid of the data.
    Where the outputs hardly move within the radius at all, what they move is held against `spread`, their standard deviations
    over the clean samples.
    """

    def ask(inputs: Tensor, batch_ids: Tensor) -> tuple[Tensor, ...]:
        region = threat.on(inputs).around(inputs)
        clean = as_columns(output_of(model, inputs))
        floor = torch.full((len(inputs),), STILL * float(np.max(spread, initial=0.0)), device=inputs.device).to(clean)
        moved, jumped = floor.clamp_min(1e-30), torch.zeros_like(floor)

        def look(point: Tensor, draw: int) -> None:
            nonlocal moved, jumped
            aside = _beside(point, region, batch_ids, seed=seed, draw=draw)
            here, there = as_columns(output_of(model, point)), as_columns(output_of(model, aside))
            for output in (here, there):
                moved = torch.maximum(moved, _most(output - clean))
            jumped = torch.maximum(jumped, _most(there - here))

        for draw in range(DRAWS):
            point = region.random(batch_ids, seed=seed, purpose="jumps", draw=draw)
            if draw % 2 and threat.norm == "linf" and region.ball.rules is None:
                point = torch.where(point >= inputs, region.high, region.low)
            look(point, 2 * draw)
            if grid is not None and region.ball.rules is None:
                look(_on_grid(point, region, grid), 2 * draw + 1)
        # What lies beside the sample itself is held against all that the others moved.
        look(inputs, 2 * DRAWS)
        return (jumped / moved,)

    with model.session():
        return in_batches(ask, (x, ids), model.batch_size)[0]


def continuous(prefix: str, jump: Floats) -> Evidence:
    """Ask whether outputs jump beside points of the ball: attacks may then have met another network than the data do."""
    over = jump > JUMP
    share = float(over.mean())
    return Evidence(
        id=f"{prefix}.continuous",
        ok=share <= JUMPING or int(over.sum()) <= 1,
        value=1 - share,
        detail=f"beside the sample, or points of the ball on and off the grid of the data, the outputs jump on {share:.1%} of "
        f"{len(jump)} samples by more than {JUMP:.0%} of what the radius moves them ({JUMPING:.0%} expected); a network that "
        "tells attacks from data answers the two differently",
        one_sided=True,
    )


def _most(move: Tensor) -> Tensor:
    # An output that is no number on one side alone is a jump.
    return move.abs().nan_to_num(1e30, 1e30).amax(dim=1)


def _beside(point: Tensor, region: Region, ids: Tensor, *, seed: int, draw: int) -> Tensor:
    """Return a point a hair beside each, no whole number, category or fixed input moved."""
    ball, shape = region.ball, tuple(point.shape[1:])
    noise = uniform_noise(ids, shape, seed=seed, purpose="jumps.beside", draw=draw).to(point)
    moved = point + noise * BESIDE * _each(ball, math.prod(shape)) * ball.unit()
    if ball.rules is not None:
        moved = torch.where(ball.rules.integer | ball.rules.grouped, point, moved)
    return region.clip(moved)


def _each(ball: Ball, inputs: int) -> float:
    """Return how far the radius moves each input where it moves all alike; in L0 as if the whole box were one."""
    sizes: dict[Norm, float] = {"linf": 1.0, "l2": inputs**-0.5, "l1": 1 / inputs, "l0": 0.0}
    if ball.norm == "l0":
        return 0.1 * float(ball.scaled((ball.high - ball.low).abs()).max())
    return ball.eps * sizes[ball.norm]


def _on_grid(point: Tensor, region: Region, grid: list[Floats]) -> Tensor:
    """Bring points to the values of the data next to them, from there towards the sample until they are allowed."""
    parts = [(point, region.x)] if len(grid) == 1 else [(point[:, i], region.x[:, i]) for i in range(len(grid))]
    near, nearer = [], []
    for (part, x), values in zip(parts, grid, strict=True):
        at = torch.as_tensor(values, device=point.device).to(point)
        above = at[torch.searchsorted(at, part.contiguous()).clamp_max(len(at) - 1)]
        below = at[(torch.searchsorted(at, part.contiguous(), right=True) - 1).clamp_min(0)]
        near.append(torch.where(part - below < above - part, below, above))
        nearer.append(torch.where(part > x, torch.maximum(below, x), torch.minimum(above, x)))
    first, second = (each[0] if len(grid) == 1 else torch.stack(each, dim=1) for each in (near, nearer))
    return torch.where((first >= region.low) & (first <= region.high), first, second)
