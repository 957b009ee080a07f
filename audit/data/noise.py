"""Noise that belongs to a sample, not to a batch: the same whatever the batch size, the order, or a kill in between.

It comes from torch generators seeded by (seed, purpose, block of 64 sample ids, draw), whole blocks at a time.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

BLOCK = 64


def uniform_noise(ids: Tensor, shape: tuple[int, ...], *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    r"""Return noise uniform in [-1, 1) of shape (len(ids), \\*shape), on the CPU, float32."""
    return _noise(ids, shape, seed, purpose, draw, normal=False)


def normal_noise(ids: Tensor, shape: tuple[int, ...], *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    r"""Return standard normal noise of shape (len(ids), \\*shape), on the CPU, float32."""
    return _noise(ids, shape, seed, purpose, draw, normal=True)


def _noise(ids: Tensor, shape: tuple[int, ...], seed: int, purpose: str, draw: int, *, normal: bool) -> Tensor:
    ids = ids.cpu()
    out = torch.empty((len(ids), *shape))
    blocks = torch.div(ids, BLOCK, rounding_mode="floor")
    for block in sorted(set(blocks.tolist())):
        generator = torch.Generator().manual_seed(_seed(seed, purpose, block, draw))
        whole = torch.empty((BLOCK, *shape))
        whole = whole.normal_(generator=generator) if normal else whole.uniform_(-1.0, 1.0, generator=generator)
        here = blocks == block
        out[here] = whole[ids[here] - block * BLOCK]
    return out


def _seed(seed: int, purpose: str, block: int, draw: int) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}/{block}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
