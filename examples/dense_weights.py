"""Turns dense layers stored as arrays (W0, b0, W1, b1, …; x @ W + b, ReLU between) into a state dict, and builds the network.

::

    python examples/dense_weights.py weights.npz model.pt
    audit run model.pt --arch examples/dense_weights.py:dense --arch-args '{"widths": [13, 16, 8, 1]}' --data … --target …
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn


def dense(widths: list[int]) -> nn.Sequential:
    """Build fully connected layers of these widths with ReLU between; one output is a single logit."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convert(source: Path, target: Path) -> list[int]:
    """Write the state dict and return the widths that `dense` needs."""
    with np.load(source, allow_pickle=False) as arrays:
        count = sum(name.startswith("W") for name in arrays.files)
        weights = [arrays[f"W{i}"] for i in range(count)]
        biases = [arrays[f"b{i}"] for i in range(count)]
    state = {}
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        # torch keeps a linear layer's weight transposed.
        state[f"{2 * i}.weight"] = torch.tensor(weight.T, dtype=torch.float32)
        state[f"{2 * i}.bias"] = torch.tensor(bias, dtype=torch.float32)
    torch.save(state, target)
    return [weights[0].shape[0], *(w.shape[1] for w in weights)]


if __name__ == "__main__":
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
