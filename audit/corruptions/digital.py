"""What storing and sending does to images: fewer pixels, and JPEG at low quality.

Source: Hendrycks & Dietterich (2019), ICLR, make_imagenet_c.py.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.corruptions.base import Corruption, Draws, ImageCorruption


class Pixelation(ImageCorruption):
    """Square blocks, each of one colour: a pixel that two blocks share is a mixture of them, so that blocks have any size."""

    name, title, family = "pixelation", "pixelation", "digital"
    # Milder at first than ImageNet-C's 0.6, 0.5, 0.4, 0.3, 0.25, of which the last two are the same on 8×8.
    strengths = (0.85, 0.7, 0.5, 0.35, 0.25)
    unit = "share of the pixels a side that is left"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:  # noqa: ARG002  (the same for every sample)
        """Average over the blocks of each row, then of each column."""
        rows, columns = (_blocks(side, 1 / strength).to(x) for side in x.shape[2:])
        return rows @ x @ columns.T


class Jpeg(ImageCorruption):
    """JPEG as Pillow writes it, on the CPU and in 8 bits; ImageNet-C's qualities."""

    name, title, family = "jpeg", "JPEG", "digital"
    strengths = (25, 15, 8, 4, 1)
    unit = "quality, of 100"

    def left_out(self, shape: tuple[int, ...]) -> str | None:
        """JPEG holds 1 or 3 channels."""
        return None if shape[0] in (1, 3) else f"JPEG holds 1 or 3 channels, and the images have {shape[0]}"

    def run(self, x: Tensor, strength: float, draws: Draws) -> Tensor:  # noqa: ARG002  (the same for every sample)
        """Write and read each image."""
        pixels = (x.detach().cpu().movedim(1, -1) * 255).round().to(torch.uint8).numpy()
        read = np.stack([_again(image, int(strength)) for image in pixels]) if len(pixels) else pixels
        return torch.from_numpy(read).to(x).movedim(-1, 1) / 255


def _blocks(side: int, size: float) -> Tensor:
    """Return the matrix that gives each of `side` pixels the mean of the block, of `size` pixels, in which it lies."""
    edges = torch.arange(0, side + size, size, dtype=torch.float64).clamp(max=side)
    pixel = torch.arange(side, dtype=torch.float64)[:, None]
    shared = (torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)).clamp_min(0)
    shared = shared[:, shared.sum(dim=0) > 1e-9]
    return shared @ (shared / shared.sum(dim=0)).T


def _again(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Write an image of shape (h, w, 1 or 3) as JPEG, and read it."""
    from PIL import Image

    grey = image.shape[-1] == 1
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=quality)
    with Image.open(file) as stored:
        read = np.asarray(stored)
    return read[..., None] if grey else read


FAMILY: tuple[type[Corruption], ...] = (Pixelation, Jpeg)
