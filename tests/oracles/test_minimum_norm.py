"""Median distances of MNIST networks: those that advertorch published, and the smallest that other libraries' attacks find."""

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


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "others"), [("linf", 0.3363), ("l2", 1.338)])
def test_no_other_attack_comes_closer_to_an_adversarially_trained_network(norm: str, others: float):
    # The smallest of others in benchmarks/minimum_norm.py: foolbox's Brendel–Bethge (L∞), torchattacks' targeted FAB (L2).
    net = LeNet5()
    path = shared("models/mnist_lenet5_advtrained.pt")
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    x, y = mnist()
    out = FMN(norm, steps=100)(Model(net.eval(), bounds=(0, 1), device="cpu"), x[:100], y[:100])
    assert float(out.distance[out.distance > 0].median()) < others
