"""The inner attack keeps to the ball and raises the loss; the losses are those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import audit
from audit.attacks import ThreatModel
from audit.hardening import METHODS, Ascent, HardeningOptions
from audit.hardening.network import trainee_of
from tests.hardening.nets import digits, trained


def trainee():
    model = audit.Model(trained(), bounds=(0, 1))
    model.resolve(torch.rand(4, 1, 8, 8))
    return trainee_of(model)


def batch(n: int = 40):
    data = digits()
    return torch.from_numpy(data.test.x[:n]), torch.from_numpy(data.test.y[:n])


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 0.6),
    steps=st.integers(1, 6),
    step_size=st.floats(0.05, 3),
    fixed=st.booleans(),
)
def test_the_ascent_keeps_to_radius_box_and_fixed_inputs(norm, eps, steps, step_size, fixed):
    network, (x, y) = trainee(), batch(8)
    mutable = np.ones((1, 8, 8), dtype=bool)
    mutable[0, :4] = not fixed
    ball = ThreatModel(norm, eps, np.asarray(0.0), np.asarray(1.0), mutable=mutable).on(x)
    with network.attacked():
        point = Ascent(ball, steps, step_size, seed=0, draw=3)(
            network, x, lambda z: functional.cross_entropy(z, y, reduction="none")
        )
    assert ball.allows(x, point).all()
    if fixed:
        assert torch.equal(point[:, 0, :4], x[:, 0, :4])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_a_method_finds_is_worse_than_the_input_and_than_its_random_start(name):
    network, (x, y) = trainee(), batch()
    ball = ThreatModel("linf", 0.1, np.asarray(0.0), np.asarray(1.0)).on(x)
    method = METHODS[name](HardeningOptions())
    with network.attacked(), torch.no_grad():
        clean = network.logits(x)
    with network.attacked():
        worst = [method.maximise(network, x, y, Ascent(ball, steps, 0.3, 0, 0)) for steps in (1, 10)]
    with torch.no_grad():
        if name == "trades":
            risen = [
                functional.kl_div(network.logits(w).log_softmax(1), clean.softmax(1), reduction="batchmean") for w in worst
            ]
            base = 0.0
        else:
            risen, base = [functional.cross_entropy(network.logits(w), y) for w in worst], functional.cross_entropy(clean, y)
    assert risen[1] > risen[0] > base


def test_the_loss_of_trades_is_that_of_the_paper():
    """Zhang et al. 2019, equation 5, written out by hand in float64."""
    network, (x, y) = trainee(), batch()
    network.module.double()
    x = x.double()
    x_adv = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)).clamp(0, 1)
    loss = METHODS["trades"](HardeningOptions(beta=3.0)).loss(network, x, x_adv, y)
    p, q = (network.logits(v).softmax(dim=1).detach().numpy() for v in (x, x_adv))
    own = -np.log(p[np.arange(len(p)), y.numpy()]).mean()
    divergence = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert float(loss.detach()) == pytest.approx(own + 3.0 * divergence, rel=1e-9)
    alone = METHODS["trades"](HardeningOptions(beta=0.0)).loss(network, x, x_adv, y)
    assert float(alone.detach()) == pytest.approx(own, rel=1e-9)


def test_trades_is_differentiated_through_both_answers():
    network, (x, y) = trainee(), batch()
    x_adv = (x + 0.1).clamp(0, 1)
    seen = []
    for which in (x, x_adv):
        which.requires_grad_(True)
    METHODS["trades"](HardeningOptions(beta=3.0)).loss(network, x, x_adv, y).backward()
    seen = [float(which.grad.abs().sum()) for which in (x, x_adv)]
    assert min(seen) > 0


def test_adversarial_training_looks_at_the_worst_inputs_alone(regressor):
    network, (x, y) = trainee(), batch()
    method = METHODS["pgd"](HardeningOptions())
    expected = functional.cross_entropy(network.logits((x + 0.1).clamp(0, 1)), y)
    assert torch.equal(method.loss(network, x, (x + 0.1).clamp(0, 1), y), expected)
    module, data = regressor
    model = audit.Model(module, task="regression")
    model.resolve(data.test.x[:4], data.test.y[:4])
    inputs, labels = model.to_input(data.test.x), torch.from_numpy(data.test.y).float()
    scaled = METHODS["pgd"](HardeningOptions(), spread=10.0).loss(trainee_of(model), inputs, inputs, labels)
    with torch.no_grad():
        assert float(scaled.detach()) == pytest.approx(float(((module(inputs) - labels) ** 2).mean() / 100), rel=1e-5)
