"""Median distances that advertorch published for its MNIST networks, found again by our attacks of minimum norm."""

from __future__ import annotations

import pytest
import torch

from audit.attacks import DDN, FMN
from audit.model.wrapper import Model
from tests.realdata import LeNet5, mnist, shared

# Published over other images than these 100, so that medians differ by some per cent: FAB for L∞, DDN for L2 (see MANIFEST.md).
PUBLISHED = [
    ("mnist_lenet5_clntrained.pt", FMN, "linf", 0.112),
    ("mnist_lenet5_clntrained.pt", DDN, "l2", 1.388),
    ("mnist_lenet5_clntrained.pt", FMN, "l2", 1.388),
    ("mnist_lenet5_advtrained.pt", DDN, "l2", 1.872),
]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "kind", "norm", "published"), PUBLISHED)
def test_the_median_distance_is_about_the_published_one(weights: str, kind, norm: str, published: float):
    path = shared(f"models/{weights}")
    net = LeNet5()
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    x, y = mnist()
    out = kind(norm, steps=100)(Model(net.eval(), bounds=(0, 1), device="cpu"), x[:100], y[:100])
    right = out.distance > 0
    assert bool(out.success.all())
    # Closer than published is stronger, and far closer would be a distance that is not what it says.
    assert 0.85 * published < float(out.distance[right].median()) < 1.03 * published
