"""Adversarial patch (Brown et al. 2017): a small picture that, pasted anywhere into an image, fools the network."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from audit.attacks.fitted import FittedAttack
from audit.attacks.goal import Goal
from audit.attacks.steps import look
from audit.data.noise import hashed_bits
from audit.errors import UsageError
from audit.model.wrapper import Model

BATCH = 64
FIRST_STEP = 0.2  # of the width of the box
STARTS = 8


class Patch(FittedAttack):
    """A square patch, trained in expectation over places.

    Brown et al. 2017, "Adversarial Patch", section 2, without a target class: the patch raises the mean loss over images and
    places (no rotation or scale). Steps go by the sign of the gradient and shrink along half a cosine; an image that is broken
    already adds nothing. Half of the steps go to random starts, the other half to the one that came farthest.

    Its threat model is no ball: all inputs of a square may take any value of the box, and none outside it changes.

    Parameters
    ----------
    share
        Share of the image's area that the patch covers, in (0, 1).
    place
        ``random``: another place for each image and step, and for measuring one that belongs to the sample's id; ``corner``:
        the upper left corner always.
    steps
        Gradient steps of 64 images; for regression up alone.
    box
        Lowest and highest value, each broadcastable to one image; the model's bounds where None.
    seed
        See `FittedAttack`.
    """

    name = "patch"

    def __init__(
        self,
        *,
        share: float = 0.05,
        place: Literal["random", "corner"] = "random",
        steps: int = 300,
        box: tuple[ArrayLike, ArrayLike] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not 0 < share < 1 or steps < 1 or place not in ("random", "corner"):
            raise UsageError(
                "share must lie between 0 and 1, steps be at least 1 and place be random or corner; "
                f"got {share:g}, {steps} and {place!r}"
            )
        self.share, self.place, self.steps, self.box = share, place, steps, box

    def fit(self, model: Model, x: Tensor, goal: Goal, ids: Tensor) -> Tensor:
        """Return the patch, (channels, side, side)."""
        if x.ndim != 4:
            raise UsageError(f"a patch is for images of shape (n, channels, height, width), got {tuple(x.shape)}")
        bounds = model.bounds if self.box is None else self.box
        if bounds is None:
            raise UsageError("a patch needs to know which values are allowed: Model(…, bounds=(0, 1))")
        low, high = (torch.as_tensor(np.asarray(side)).to(x).expand(x.shape[1:]).flatten(1) for side in bounds)
        # A bound of its own for each pixel would forbid to move the patch: the narrowest box of each channel is taken.
        low, high = low.amax(dim=1)[:, None, None], high.amin(dim=1)[:, None, None]
        side, trial = self.side(x), max(1, self.steps // (2 * STARTS))
        best, most = None, -math.inf
        for start in range(STARTS):
            noise = torch.rand((x.shape[1], side, side), generator=torch.Generator().manual_seed(self.seed + start)).to(x)
            patch, margin = self._climb(model, x, goal, ids, low + noise * (high - low), (low, high), trial, start + 1)
            if margin > most:
                best, most = patch, margin
        assert best is not None  # noqa: S101  (a mean of margins is above minus infinity)
        return self._climb(model, x, goal, ids, best, (low, high), max(1, self.steps - STARTS * trial), STARTS + 1)[0]

    def _climb(
        self,
        model: Model,
        x: Tensor,
        goal: Goal,
        ids: Tensor,
        patch: Tensor,
        box: tuple[Tensor, Tensor],
        steps: int,
        run: int,
    ) -> tuple[Tensor, float]:
        """Return the patch after these steps, and the mean margin over the last half of them."""
        low, high = box
        margins: list[Tensor] = []
        for k, batch in enumerate(self.batches(len(x), BATCH, steps)):
            rows = batch.to(x.device)
            index = self._index(x[rows], ids[rows], draw=run * self.steps + k + 1)
            gradient, margin, hit = look(model, goal.take(rows), _paste(x[rows], patch, index), 1.0, "ce")
            margins.append(margin.clamp_max(0.0).nan_to_num(0.0).mean())
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0).flatten(2).gather(2, index.expand(-1, x.shape[1], -1))
            total = (gradient * (~hit)[:, None, None]).sum(dim=0).view_as(patch)
            length = FIRST_STEP * (1 + math.cos(math.pi * k / steps)) / 2
            patch = torch.minimum(torch.maximum(patch + length * total.sign() * (high - low), low), high)
        return patch, float(torch.stack(margins[len(margins) // 2 :]).mean())

    def apply(self, x: Tensor, change: Tensor, ids: Tensor) -> Tensor:
        """Return the images with the patch, each at its own place."""
        return _paste(x, change, self._index(x, ids, draw=0))

    def side(self, x: Tensor) -> int:
        """Return the side of the patch in pixels, at least 1; the share is kept from above."""
        height, width = x.shape[2:]
        return max(1, min(height, width, int(math.sqrt(self.share * height * width))))

    def _index(self, x: Tensor, ids: Tensor, draw: int) -> Tensor:
        """Return the flat pixels that the patch covers in each image, int64 (n, 1, side · side)."""
        (height, width), side = x.shape[2:], self.side(x)
        numbers = hashed_bits(ids, 2, seed=self.seed, purpose=self.name, draw=draw)
        if self.place == "corner":
            numbers = torch.zeros_like(numbers)
        top, left = (numbers[:, :1] * (height - side + 1)) >> 32, (numbers[:, 1:] * (width - side + 1)) >> 32
        at = torch.arange(side, device=x.device)
        rows, columns = (top + at)[:, :, None], (left + at)[:, None, :]
        return (rows * width + columns).flatten(1)[:, None]


def _paste(x: Tensor, patch: Tensor, index: Tensor) -> Tensor:
    shape = (len(x), x.shape[1], index.shape[2])
    return x.flatten(2).scatter(2, index.expand(shape), patch.flatten(1).expand(shape)).view_as(x)
