"""Blur of lenses and of motion, in lengths that grow with the image.

ImageNet-C's disks have 3 to 10 pixels, of 224 a side. Here they grow with the square root of the side, and are the same at 224:
a small image shows its object in few pixels, with strokes that are a larger share of the side, and a disk of less than half a
pixel, as 10/224 of 8 pixels is, would change nothing.

Source: Hendrycks & Dietterich (2019), ICLR, make_imagenet_c.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, ImageCorruption
from audit.corruptions.warp import moved

FINE = 16  # subpixels a side, by which the edge of the disk is drawn


class DefocusBlur(ImageCorruption):
    """A lens out of focus: each point becomes a disk."""

    name, title, family = "defocus_blur", "defocus blur", "blur"
    strengths = (3, 4, 6, 8, 10)
    unit = "radius in pixels for 224 pixels a side, times the square root of side / 224"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:  # noqa: ARG002  (the same for every sample)
        """Convolve with the disk."""
        kernel = disk(strength * math.sqrt(min(x.shape[2:]) / 224)).to(x)
        n, channels, height, width = x.shape
        reach = len(kernel) // 2
        flat = torch.nn.functional.pad(x.reshape(n * channels, 1, height, width), (reach,) * 4, mode="replicate")
        return torch.nn.functional.conv2d(flat, kernel[None, None]).reshape(x.shape)


class MotionBlur(ImageCorruption):
    """The camera moves while the shutter is open: each point becomes a line, within 45° of the horizontal."""

    name, title, family = "motion_blur", "motion blur", "blur"
    strengths = (0.04, 0.07, 0.1, 0.14, 0.18)
    unit = "length, as a share of the shorter side, and one pixel more"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Average the image over its way, at least two places a pixel."""
        length = 1 + strength * min(x.shape[2:])
        angle = (draws.uniform(())[:, None] - 0.5)[:, 0] * math.pi / 2
        places = 2 * math.ceil(length) + 1
        total = torch.zeros_like(x)
        for i in range(places):
            along = length * (i / (places - 1) - 0.5)
            total += moved(x, along * torch.cos(angle), along * torch.sin(angle))
        return total / places


def disk(radius: float) -> Tensor:
    """Return a disk of this radius in pixels as a kernel that sums to 1, its edge in shares of a pixel."""
    reach = math.ceil(radius - 0.5)
    places = torch.arange((2 * reach + 1) * FINE, dtype=torch.float64)
    offset = (places + 0.5) / FINE - reach - 0.5
    inside = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).double()
    kernel = torch.nn.functional.avg_pool2d(inside[None, None], FINE)[0, 0]
    return kernel / kernel.sum()


FAMILY: tuple[type[Corruption], ...] = (DefocusBlur, MotionBlur)
