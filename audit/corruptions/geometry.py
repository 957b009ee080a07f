"""The object is elsewhere: partly hidden, turned, or shifted. Lengths are shares of the side; edges are repeated outwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, ImageCorruption
from audit.corruptions.warp import moved, turned


class Occlusion(ImageCorruption):
    """A square of middle grey hides a part, anywhere in the image."""

    name, title, family = "occlusion", "occlusion", "geometry"
    strengths = (0.2, 0.3, 0.4, 0.5, 0.6)
    unit = "side of the square, as a share of the image's"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Lay the square over the image, its edge in shares of a pixel, so that it grows on small images, too."""
        place = draws.uniform((2,))
        rows, columns = (_covered(x.shape[2 + i], strength, place[:, i]) for i in range(2))
        hidden = (rows[:, :, None] * columns[:, None, :])[:, None]
        return x * (1 - hidden) + 0.5 * hidden


class Rotation(ImageCorruption):
    """The image is turned, to the left or to the right."""

    name, title, family = "rotation", "rotation", "geometry"
    strengths = (5, 10, 15, 22, 30)
    unit = "degrees"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Turn each image one way."""
        side = torch.where(draws.uniform(()) < 0.5, -1.0, 1.0).to(x)
        return turned(x, strength * side)


class Shift(ImageCorruption):
    """The image is moved, in any direction."""

    name, title, family = "shift", "shift", "geometry"
    strengths = (0.04, 0.08, 0.12, 0.16, 0.2)
    unit = "distance, as a share of the side"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Move each image its way."""
        angle = 2 * math.pi * draws.uniform(())
        right, down = torch.cos(angle) * x.shape[3], torch.sin(angle) * x.shape[2]
        return moved(x, strength * right, strength * down)


def _covered(side: int, share: float, place: Tensor) -> Tensor:
    """Return how much of each pixel along one side is hidden, of shape (n, side), for a square at `place` in [0, 1)."""
    start = (place * side * (1 - share))[:, None]
    pixel = torch.arange(side, device=place.device, dtype=place.dtype)
    return (torch.minimum(start + side * share, pixel + 1) - torch.maximum(start, pixel)).clamp(0, 1)


FAMILY: tuple[type[Corruption], ...] = (Occlusion, Rotation, Shift)
