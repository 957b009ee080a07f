"""Noise of sensors: Gaussian (electronics), shot (few photons) and impulse (dead and hot pixels).

Strengths are those of ImageNet-C, as shares of the box; noise a pixel does not depend on the size of the image.

Source: Hendrycks & Dietterich (2019), ICLR, make_imagenet_c.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, ImageCorruption


class GaussianNoise(ImageCorruption):
    """Normal noise of the same size in every value."""

    name, title, family = "gaussian_noise", "Gaussian noise", "noise"
    strengths = (0.08, 0.12, 0.18, 0.26, 0.38)
    unit = "standard deviation, as a share of the box"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Add it."""
        return x + strength * draws.normal(tuple(x.shape[1:]))


class ShotNoise(ImageCorruption):
    """Poisson noise of light: each value is a count of photons."""

    name, title, family = "shot_noise", "shot noise", "noise"
    strengths = (30, 12, 5, 2.5, 1.25)
    unit = "photons in the brightest pixel"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Draw the counts by inversion of the Poisson distribution, so that each comes from one uniform number."""
        mean, chance = x * strength, draws.uniform(tuple(x.shape[1:]))
        term = torch.exp(-mean)
        total, count = term.clone(), torch.zeros_like(x)
        # Beyond this no quantile lies: a uniform float32 is at most 1 − 2⁻²⁴, five standard deviations.
        for k in range(1, math.ceil(strength + 8 * math.sqrt(strength) + 10)):
            count += chance >= total
            term = term * mean / k
            total += term
        return count / strength


class ImpulseNoise(ImageCorruption):
    """Salt and pepper: some values jump to the lowest or the highest."""

    name, title, family = "impulse_noise", "impulse noise", "noise"
    strengths = (0.03, 0.06, 0.09, 0.17, 0.27)
    unit = "share of the values"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:
        """Set half of the share to 0 and half to 1."""
        chance = draws.uniform(tuple(x.shape[1:]))
        x = torch.where(chance < strength / 2, 0.0, x)
        return torch.where(chance >= 1 - strength / 2, 1.0, x)


FAMILY: tuple[type[Corruption], ...] = (GaussianNoise, ShotNoise, ImpulseNoise)
