"""Light and weather: brighter, less contrast, haze. Strengths of brightness and contrast are those of ImageNet-C.

Source: Hendrycks & Dietterich (2019), ICLR, make_imagenet_c.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, ImageCorruption

DECAY = 1.75  # how much weaker each finer layer of the haze is


class Brightness(ImageCorruption):
    """Over-exposure: every value rises by the same amount, in all channels, and is cut off at the top."""

    name, title, family = "brightness", "brightness", "weather"
    strengths = (0.1, 0.2, 0.3, 0.4, 0.5)
    unit = "rise, as a share of the box"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:  # noqa: ARG002  (the same for every sample)
        """Add it."""
        return x + strength


class Contrast(ImageCorruption):
    """Flat light: values are drawn towards the mean of their channel in the image."""

    name, title, family = "contrast", "low contrast", "weather"
    strengths = (0.4, 0.3, 0.2, 0.1, 0.05)
    unit = "share of the contrast that is left"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:  # noqa: ARG002  (the same for every sample)
        """Shrink the distance from the mean."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (x - mean) * strength + mean


class Haze(ImageCorruption):
    """Fog: the image fades into clouds of noise at many scales, no brighter than its brightest value.

    As in ImageNet-C, x' = (x + c·p)·m / (m + c) with a plasma p in [0, 1] and the image's maximum m. The plasma is a sum of
    grids of 2, 3, 5, 9 … values a side, each finer one weaker, in place of the diamond-square recursion, which is drawn
    number by number.
    """

    name, title, family = "haze", "haze", "weather"
    strengths = (0.5, 1.0, 1.5, 2.25, 3.0)
    unit = "weight of the clouds, the image having weight 1"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Mix image and clouds."""
        top = x.amax(dim=(1, 2, 3), keepdim=True)
        share = strength / (top + strength)
        return (1 - share) * x + share * top * plasma(x.shape[2], x.shape[3], draws)


def plasma(height: int, width: int, draws: Draws) -> Tensor:
    """Return clouds of shape (n, 1, height, width), each from 0 to 1."""
    sides = [2]
    while sides[-1] < max(height, width):
        sides.append(2 * sides[-1] - 1)
    numbers = draws.uniform((sum(side * side for side in sides),))
    clouds, start = torch.zeros((), device=numbers.device, dtype=numbers.dtype), 0
    for layer, side in enumerate(sides):
        grid = numbers[:, start : start + side * side].reshape(-1, 1, side, side)
        smooth = torch.nn.functional.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
        clouds = clouds + smooth / DECAY**layer
        start += side * side
    clouds = clouds - clouds.amin(dim=(2, 3), keepdim=True)
    return clouds / clouds.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)


FAMILY: tuple[type[Corruption], ...] = (Brightness, Contrast, Haze)
