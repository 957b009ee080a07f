"""Moves images by parts of a pixel and turns them: bilinear, the edge repeated outwards, each sample in its own way."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Shift each image by (right, down) pixels; x of shape (n, c, h, w), the others of shape (n,)."""
    height, width = x.shape[2:]
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2], theta[:, 1, 2] = -2 * right / width, -2 * down / height
    return _sampled(x, theta)


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image about its centre, anticlockwise; x of shape (n, c, h, w), degrees of shape (n,)."""
    height, width = x.shape[2:]
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = cos
    # Coordinates run from −1 to 1 along both sides, however long they are.
    theta[:, 0, 1], theta[:, 1, 0] = -sin * height / width, sin * width / height
    return _sampled(x, theta)


def _sampled(x: Tensor, theta: Tensor) -> Tensor:
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
