"""FGSM and Square against closed forms, and against what the authors' code and ART do on the networks of others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from audit.attacks import FGSM, Square
from audit.attacks.art import ArtAttack
from audit.model.wrapper import Model
from tests.realdata import LeNet5, mnist, shared


def linear() -> tuple[Model, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return a linear network and each sample's distance to the boundary: |w·x + b| over the dual norm of w."""
    torch.manual_seed(0)
    net = nn.Linear(10, 2).double()
    x = torch.randn(300, 10, dtype=torch.float64)
    with torch.no_grad():
        logits = net(x)
        weight = net.weight[0] - net.weight[1]
        gap = (logits[:, 0] - logits[:, 1]).abs()
    distances = {"linf": gap / weight.abs().sum(), "l2": gap / weight.norm()}
    return Model(net, bounds=(-100, 100), device="cpu"), x, logits.argmax(dim=1), distances


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_breaks_a_linear_network_exactly_beyond_its_margin(norm: str):
    model, x, y, distances = linear()
    eps = float(distances[norm].median())
    out = FGSM(norm, eps)(model, x, y)
    clear = (distances[norm] - eps).abs() > 1e-6 * eps
    assert torch.equal(out.success[clear], (distances[norm] < eps)[clear])


def test_square_finds_the_best_corner_of_a_linear_network():
    model, x, y, distances = linear()
    eps = float(distances["linf"].median())
    out = Square("linf", eps, queries=400)(model, x, y)
    reachable = distances["linf"] < eps
    assert not bool((out.success & ~reachable & ((distances["linf"] - eps).abs() > 1e-6 * eps)).any())
    assert float(out.success[reachable].double().mean()) > 0.97


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_holds_for_art_s_decision_based_attack(norm: str):
    pytest.importorskip("art.attacks.evasion")
    model, x, y, distances = linear()
    model.bounds = (-5, 5)
    x, y, distance = x[:20].float(), y[:20], distances[norm][:20]
    narrow = Model(model.module.float(), bounds=(-5, 5), device="cpu")
    narrow.resolve(x)
    eps = float(distance.median())
    out = ArtAttack("HopSkipJump", norm, eps, max_iter=5, max_eval=300, init_eval=50)(narrow, x, y)
    assert not bool((out.success & (distance > 1.001 * eps)).any())
    assert float(out.success[distance < 0.7 * eps].double().mean()) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps", "low", "high"), [("linf", 0.35, 55, 70), ("l2", 2.0, 8, 20)])
def test_square_breaks_as_many_as_the_authors_code_at_equal_queries(norm: str, eps: float, low: int, high: int):
    """Of the first 100 samples the authors' code breaks 64 (L∞ 0.35) and 16 (L2 2.0); ART's 51 in L∞, at three times that."""
    x, y = mnist()
    model = Model.load(shared("models/mnist_lenet5_advtrained.pt"), arch=LeNet5, bounds=(0, 1), device="cpu")
    out = Square(norm, eps, queries=200)(model, x[:100], y[:100])
    assert low <= int(out.success[torch.isfinite(out.loss_start)].sum()) <= high
