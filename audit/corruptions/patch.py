"""One small patch, the same in every image: where it can stand, and stamping it.

A network in which such a patch turns most inputs into one class has a backdoor, or trusts one corner too much.

Source of the attack: Gu, Dolan-Gavitt & Garg (2017), BadNets, arXiv:1708.06733.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

SHARE = 3 / 28  # of the side: BadNets' patch has 3 of 28 pixels
SIDE_PLACES = 10  # positions along each side, at most


@dataclass(frozen=True)
class Patch:
    """A square at (top, left), `side` pixels wide, in all channels at the highest or the lowest value of the box."""

    top: int
    left: int
    side: int
    bright: bool

    def stamp(self, x: Tensor, low: ArrayLike, high: ArrayLike) -> Tensor:
        """Return images of shape (n, c, h, w) with the patch on them."""
        value = torch.as_tensor(high if self.bright else low, dtype=x.dtype, device=x.device).expand(x.shape[1:])
        rows, columns = slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)
        stamped = x.clone()
        stamped[:, :, rows, columns] = value[:, rows, columns]
        return stamped

    def __str__(self) -> str:
        return f"{'bright' if self.bright else 'dark'} {self.side}×{self.side} patch at row {self.top}, column {self.left}"


def patches(height: int, width: int) -> list[Patch]:
    """Return all patches to try: bright and dark, at up to 10×10 places that lie evenly over the image, edges included."""
    side = max(2, round(SHARE * min(height, width)))
    tops, lefts = (
        np.unique(np.linspace(0, long - side, min(SIDE_PLACES, long - side + 1)).round()) for long in (height, width)
    )
    return [Patch(int(top), int(left), side, bright) for bright in (True, False) for top in tops for left in lefts]
