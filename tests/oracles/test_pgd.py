"""PGD against answers known from elsewhere: closed forms for linear networks, and published figures for real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from audit.attacks import PGD
from audit.model.wrapper import Model
from tests.realdata import LeNet5, mnist, shared


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_network_breaks_exactly_beyond_its_margin(norm: str):
    """The distance to a linear boundary is |w·x + b| over the dual norm of w (L1 for L∞, L2 for L2)."""
    torch.manual_seed(0)
    net = nn.Linear(20, 2).double()
    x = torch.randn(300, 20, dtype=torch.float64)
    with torch.no_grad():
        logits = net(x)
        y = logits.argmax(dim=1)
        weight = net.weight[0] - net.weight[1]
        dual = weight.abs().sum() if norm == "linf" else weight.norm()
        margin = (logits[:, 0] - logits[:, 1]).abs() / dual
    eps = float(margin.median())
    model = Model(net, bounds=(-100, 100), device="cpu")
    out = PGD(norm, eps, steps=40, random_start=False)(model, x, y)
    clear = (margin - eps).abs() > 1e-3 * eps
    assert torch.equal(out.success[clear], (margin < eps)[clear])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy", "low", "high"), [("cln", 0.9889, 1.0, 1.0), ("adv", 0.9864, 0.055, 0.085)])
def test_published_mnist_networks(name: str, accuracy: float, low: float, high: float):
    """Published by advertorch: 98.89 / 98.64 % clean; PGD at 0.3 (40 steps of 0.01, from the input) breaks 100 / 6.8 %."""
    x, y = mnist()
    path = shared(f"models/mnist_lenet5_{name}trained.pt")
    model = Model.load(path, arch=LeNet5, bounds=(0, 1), device="cpu")
    assert float(np.mean(model.predict(x).numpy() == y)) == pytest.approx(accuracy, abs=5e-5)
    out = PGD("linf", 0.3, steps=40, step_size=0.01, random_start=False)(model, x[:1000], y[:1000])
    right = torch.isfinite(out.loss_start)
    success = float(out.success[right].double().mean())
    assert low <= success <= high


@pytest.mark.slow
def test_shrinking_steps_break_more_than_constant_ones_at_the_same_cost():
    """The claim of PGD's docstring, on the network that it names."""
    x, y = mnist()
    model = Model.load(shared("models/mnist_lenet5_advtrained.pt"), arch=LeNet5, bounds=(0, 1), device="cpu")
    constant = PGD("linf", 0.35, steps=40, restarts=2, step_size=2.5 * 0.35 / 40)(model, x[:150], y[:150])
    shrinking = PGD("linf", 0.35, steps=40, restarts=2)(model, x[:150], y[:150])
    assert shrinking.backwards <= constant.backwards
    assert int(shrinking.success.sum()) >= int(constant.success.sum()) + 20
