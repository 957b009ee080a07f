"""Hashed numbers: the generator that they claim to be, even, and each of its own (seed, purpose, draw, id, position)."""

from __future__ import annotations

import numpy as np
import torch

from audit.data import noise
from audit.data.noise import hashed_bits


def splitmix64(state: int, count: int) -> list[int]:
    """Return the generator's own stream (Steele, Lea & Flood 2014), in Python's unbounded integers."""
    out, mask = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_the_mixer_is_splitmix64():
    # The stream of seed 1234567, as published with the reference implementation.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, 5) == known
    states = torch.tensor([1234567], dtype=torch.int64)[:, None] + torch.arange(1, 6)[None] * noise.GOLDEN
    ours = [int(v) % 2**64 for v in noise._mix(states)[0]]
    assert ours == known


def test_numbers_are_even_and_bits_are_free_of_each_other():
    bits = hashed_bits(torch.arange(2000), 20, seed=3, purpose="test").numpy()
    assert bits.min() >= 0
    assert bits.max() < 2**32
    counts = np.bincount((bits.ravel() >> 28), minlength=16)
    # Chi-squared over 16 cells: mean 15, standard deviation 5.5.
    assert float(((counts - 2500) ** 2 / 2500).sum()) < 15 + 4 * 5.5
    signs = (bits >= 2**31) * 2.0 - 1
    together = signs.T @ signs / len(signs)
    assert np.abs(together - np.eye(20)).max() < 5 / np.sqrt(2000)
    neighbours = (signs[1:] * signs[:-1]).mean()
    assert abs(neighbours) < 5 / np.sqrt(signs.size)


def test_numbers_belong_to_ids_seed_purpose_and_draw():
    ids = torch.tensor([5, 2**40, 0, 63, 64, -7])
    whole = hashed_bits(ids, 4, seed=1, purpose="a", draw=2)
    assert torch.equal(whole[[3, 1]], hashed_bits(ids[[3, 1]], 4, seed=1, purpose="a", draw=2))
    assert torch.equal(whole[:, :2], hashed_bits(ids, 2, seed=1, purpose="a", draw=2))
    for other in ({"seed": 2}, {"purpose": "b"}, {"draw": 3}):
        assert not torch.equal(whole, hashed_bits(ids, 4, **{"seed": 1, "purpose": "a", "draw": 2, **other}))
