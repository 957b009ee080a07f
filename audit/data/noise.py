"""Noise that belongs to a sample, not to a batch: the same whatever the batch size, the order, or a kill in between.

It comes from torch generators seeded by (seed, purpose, block of 64 sample ids, draw), whole blocks at a time; or, for an
attack that needs a few numbers a sample in each of thousands of queries, from a hash of (seed, purpose, draw, id, position).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

BLOCK = 64
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit integers, which torch has
MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def uniform_noise(ids: Tensor, shape: tuple[int, ...], *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    r"""Return noise uniform in [-1, 1) of shape (len(ids), \\*shape), on the CPU, float32."""
    return _noise(ids, shape, seed, purpose, draw, normal=False)


def normal_noise(ids: Tensor, shape: tuple[int, ...], *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    r"""Return standard normal noise of shape (len(ids), \\*shape), on the CPU, float32."""
    return _noise(ids, shape, seed, purpose, draw, normal=True)


def hashed_bits(ids: Tensor, count: int, *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """Return whole numbers uniform in [0, 2³²) of shape (len(ids), count), int64, on the device of `ids`.

    SplitMix64 (Steele, Lea & Flood 2014, figure 9) as a hash of (seed, purpose, draw), id and position: a few kernels on the
    device, where a generator for each block of 64 ids would cost more than the query that it serves. `draw` and position are
    of [0, 2³¹).
    """
    key = block_seed(seed, purpose, 0, draw)
    stream = _mix(ids.long() * GOLDEN + key)
    places = torch.arange(1, count + 1, dtype=torch.int64, device=ids.device) * GOLDEN
    return _shift(_mix(stream[:, None] + places), 32)


def _mix(z: Tensor) -> Tensor:
    """Mix the bits of 64-bit integers; products wrap."""
    z = (z ^ _shift(z, 30)) * MIX[0]
    z = (z ^ _shift(z, 27)) * MIX[1]
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; torch fills with the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _noise(ids: Tensor, shape: tuple[int, ...], seed: int, purpose: str, draw: int, *, normal: bool) -> Tensor:
    ids = ids.cpu()
    out = torch.empty((len(ids), *shape))
    blocks = torch.div(ids, BLOCK, rounding_mode="floor")
    for block in sorted(set(blocks.tolist())):
        generator = torch.Generator().manual_seed(block_seed(seed, purpose, block, draw))
        whole = torch.empty((BLOCK, *shape))
        whole = whole.normal_(generator=generator) if normal else whole.uniform_(-1.0, 1.0, generator=generator)
        here = blocks == block
        out[here] = whole[ids[here] - block * BLOCK]
    return out


def block_seed(seed: int, purpose: str, block: int, draw: int = 0) -> int:
    """Return the seed of a generator for one block of 64 sample ids, in [0, 2⁶³)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{block}/{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
